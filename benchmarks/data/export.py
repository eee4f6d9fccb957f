"""How much faster than real time bags become a data set.

    python benchmarks/data/export.py --bags 4 --seconds 20 --workers 2

Bags are made as the recorder writes them (the shipped contract: two cameras of 224 px at 15 Hz as JPEG, joint states at
500 Hz, commands at 100 Hz), exported as MP4 and as PNG, and the bytes of the statistics of two runs are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "data"))

import bags  # noqa: E402

from vla_ros.data.export import Options, export  # noqa: E402


def measure(folder: Path, out: Path, lossless: bool, workers: int) -> dict[str, float]:
    """Wall time of one export, start of the worker processes included."""
    began_s = time.perf_counter()
    done = export([folder], out, Options(lossless=lossless), workers, quiet=True)
    took_s = time.perf_counter() - began_s
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "episodes": done["episodes"],
        "frames": done["frames"],
        "took_s": round(took_s, 2),
        "bytes_per_frame": round(size / done["frames"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each")
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(a.bags):
            bags.make(folder / "bags", f"{k:03d}", seconds=a.seconds, seed=k)
        result: dict[str, object] = {"recorded_s": a.bags * a.seconds, "workers": a.workers}
        for kind in ("video", "lossless"):
            found = measure(folder / "bags", folder / kind, kind == "lossless", a.workers)
            result[kind] = {**found, "times_real_time": round(a.bags * a.seconds / found["took_s"], 1)}
        measure(folder / "bags", folder / "again", False, 1)
        stats = [(folder / kind / "meta/stats.json").read_bytes() for kind in ("video", "again")]
        result["statistics_identical"] = stats[0] == stats[1]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
