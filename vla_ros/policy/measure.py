"""One runtime, alone in a process: latency, memory step by step, what ran. `vla bench policy` starts one per runtime.

python -m vla_ros.policy.measure FOLDER --runtime int8 -n 200
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 5
TEXT = "pick up the red cube"


def memory_mb() -> dict[str, float]:
    """Resident and proportional memory of this process [MB]; Linux."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return {"rss": int(kilobytes["Rss"]) / 1e3, "pss": int(kilobytes["Pss"]) / 1e3}


def measure(folder: Path, runtime: str, robot: str, n: int) -> dict[str, Any]:
    """Latency of n chunks on synthetic images, one thread; both wall time and the thread's own processor time, which
    does not count what other processes of a busy machine take."""
    steps = {"python": memory_mb()}
    import numpy as np

    from vla_ros.core import contract as contracts
    from vla_ros.core.types import Observation

    contract = contracts.load(robot)
    steps["numpy, pinocchio, contract"] = memory_mb()
    if runtime.startswith("torch"):
        import torch  # noqa: F401
    elif runtime == "openvino":
        import openvino  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    steps["runtime library"] = memory_mb()
    from vla_ros.policy.runtimes import open_policy

    policy = open_policy(folder, contract, runtime)
    steps["policy loaded"] = memory_mb()
    rng = np.random.default_rng(0)
    wall_s, own_s = [], []
    for k in range(n + WARM_UP):
        images = {c.name: rng.integers(0, 255, (c.policy_px, c.policy_px, 3), dtype=np.uint8) for c in contract.cameras}
        still = np.zeros(contract.n_joints)
        seen = Observation(
            k + 1, k + 1, contract.hash, images, contract.poses.ready_rad, still, contract.gripper.open_m
        )
        started_s, own_started_s = time.perf_counter(), time.thread_time()
        policy.infer(seen, TEXT, rng)
        wall_s.append(time.perf_counter() - started_s)
        own_s.append(time.thread_time() - own_started_s)
    steps["after inference"] = memory_mb()
    wall_ms, own_ms = (np.array(taken[WARM_UP:]) * 1e3 for taken in (wall_s, own_s))
    return {
        "runtime": runtime,
        "n": n,
        "latency_ms": {f"p{q}": round(float(np.percentile(wall_ms, q)), 3) for q in (50, 99)},
        "processor_ms": {f"p{q}": round(float(np.percentile(own_ms, q)), 3) for q in (50, 99)}
        | {"min": round(float(own_ms.min()), 3)},
        "chunks_per_s": round(1e3 / float(wall_ms.mean()), 1),
        "memory_mb": steps,
        "precision": policy.precision,
        "checkpoint": policy.checkpoint_hash,
    }


def main() -> None:
    from vla_ros.core.errors import VlaError
    from vla_ros.policy.runtimes import RUNTIMES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", choices=list(RUNTIMES), required=True)
    parser.add_argument("--robot", default="panda")
    parser.add_argument("-n", type=int, default=200)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        print(json.dumps(measure(given.folder, given.runtime, given.robot, given.n)))
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
