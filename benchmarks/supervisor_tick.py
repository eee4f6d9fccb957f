"""Time of one supervisor tick while it follows chunks: `python benchmarks/supervisor_tick.py [--runs 3] [--json]`.

Prints p50, p99 and maximum, wall and CPU time, of every tick (the bar: p99 <= 1.5 ms), of those without a new chunk
(limiter, executor, look-ahead, all checks, at times three rows of the last chunk), of those that accept one (inverse
kinematics of the rows that are read next on top), and of the limiter and the look-ahead (box, self-collision,
singularity at the stop pose) alone. CPU time is what the code needs on this machine as it is; wall time is what a busy
machine makes of it. All runs do exactly the same: `least_cpu` has of each tick the fastest run, which neighbours on the
processor disturbs least.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "test" / "core"))
from core_loop import Loop

from vla_ros.core.limits import Limiter, MotionState
from vla_ros.core.lookahead import LookAhead

TICKS = 3000
KINDS = ("cpu", "wall", "least_cpu")


def measure(ticks: int, runs: int) -> dict[str, dict[str, float]]:
    times, accepts = zip(*(_follow(ticks) for _ in range(runs)), strict=True)
    following, accepts = np.array(times), np.array(accepts[0])  # (runs, ticks, 2): wall, CPU
    parts = np.array([_parts(ticks) for _ in range(runs)])  # (runs, ticks, 2 parts, 2)
    rows = {
        "every_tick": following,
        "tick": following[:, ~accepts],
        "tick_with_new_chunk": following[:, accepts],
        "limiter": parts[:, :, 0],
        "look_ahead": parts[:, :, 1],
    }
    return {name: _percentiles(row) for name, row in rows.items()}


def _follow(ticks: int) -> tuple[list[tuple[float, float]], list[bool]]:
    """Wall and CPU time of each tick, and whether it accepted a chunk."""
    loop = Loop()
    loop.arm()
    loop.instruct()
    update = loop.supervisor.update
    times: list[tuple[float, float]] = []

    def timed(now_s, inputs):
        start = _now()
        decision = update(now_s, inputs)
        times.append(_since(start))
        return decision

    loop.supervisor.update = timed
    goals = np.random.default_rng(0).uniform([0.35, -0.3, 0.1], [0.6, 0.3, 0.4], (20, 3))
    accepts, before = [], 0
    gc.collect()
    gc.freeze()  # as the node does when it is activated
    for k in range(ticks):
        loop.goal_p = goals[k // 200 % len(goals)]
        accepted = loop.tick().counters.chunks_accepted
        accepts.append(accepted > before)
        before = accepted
    return times, accepts


def _parts(ticks: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Of limiter and look-ahead."""
    loop = Loop()
    limiter, state = Limiter(loop.contract.limits, loop.contract.period_s), MotionState.at_rest(loop.q)
    look_ahead, times = LookAhead(loop.contract, loop.kinematics), []
    for k in range(ticks):
        start = _now()
        state = limiter.step(state, loop.q + 0.3 * np.sin(0.02 * k), np.zeros(loop.q.size), loop.contract.period_s)
        limited, start = _since(start), _now()
        look_ahead.look(state)
        times.append((limited, _since(start)))
    return times


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = _now()
    return wall - start[0], cpu - start[1]


def _percentiles(times: np.ndarray) -> dict[str, float]:
    """Of (runs, ticks, 2)."""
    wall, cpu = times[..., 0].ravel(), times[..., 1].ravel()
    columns = dict(zip(KINDS, (cpu, wall, times[..., 1].min(axis=0)), strict=True))
    return {"n": times[..., 0].size} | {
        f"{kind}_{label}_ms": round(float(np.percentile(column, p)) * 1e3, 3)
        for kind, column in columns.items()
        for label, p in (("p50", 50), ("p99", 99), ("max", 100))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ticks", type=int, default=TICKS, help="of one run")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.ticks, arguments.runs)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'p50 / p99 / max [ms]':<30}" + "".join(f"{kind:<26}" for kind in KINDS))
    for name, row in result.items():
        cells = (" / ".join(f"{row[f'{kind}_{p}_ms']:.3f}" for p in ("p50", "p99", "max")) for kind in KINDS)
        print(f"{name:<22}{row['n']:>6}  " + "".join(f"{cell:<26}" for cell in cells))


if __name__ == "__main__":
    main()
