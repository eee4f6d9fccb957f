"""How much faster than real time bags become a data set.

    python benchmarks/data/export.py --bags 4 --seconds 20 --workers 2

Bags are made as the recorder writes them (the shipped contract: two cameras of 224 px at 15 Hz as JPEG, joint states at
500 Hz, commands at 100 Hz), exported as MP4 and as PNG, and the bytes of statistics and tables of two runs are
compared. Wall clock is what counts on a quiet machine; CPU time, of all processes, tells how much of it was work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FASTER_MIN = 5.0  # than real time
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "data"))

import bags  # noqa: E402

from vla_ros.data.export import Options, export  # noqa: E402


def cpu_s() -> float:
    """Of this process and of those that it has waited for [s]."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def contents(folder: Path) -> dict[str, bytes]:
    """Statistics and tables by name."""
    files = [folder / "meta/stats.json", *sorted(folder.rglob("*.parquet"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def measure(folder: Path, out: Path, lossless: bool, workers: int) -> dict[str, float]:
    """Wall and CPU time of one export, start of the worker processes included."""
    began_s, began_cpu_s = time.perf_counter(), cpu_s()
    done = export([folder], out, Options(lossless=lossless), workers, quiet=True)
    took_s, took_cpu_s = time.perf_counter() - began_s, cpu_s() - began_cpu_s
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "episodes": done["episodes"],
        "frames": done["frames"],
        "took_s": round(took_s, 2),
        "cpu_s": round(took_cpu_s, 2),
        "cores_busy": round(took_cpu_s / took_s, 2),
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
        result: dict[str, Any] = {"recorded_s": a.bags * a.seconds, "workers": a.workers}
        for kind in ("video", "lossless"):
            found = measure(folder / "bags", folder / kind, kind == "lossless", a.workers)
            result[kind] = {**found, "times_real_time": round(a.bags * a.seconds / found["took_s"], 1)}
        measure(folder / "bags", folder / "again", False, 1)
        first, again = contents(folder / "video"), contents(folder / "again")
        result["statistics_identical"] = first["meta/stats.json"] == again["meta/stats.json"]
        result["tables_identical"] = first == again
    print(json.dumps({**result, "load": os.getloadavg()[0]}, indent=1))
    slowest = min(result[kind]["times_real_time"] for kind in ("video", "lossless"))
    sys.exit(0 if slowest >= FASTER_MIN and result["statistics_identical"] else 1)


if __name__ == "__main__":
    main()
