"""Time of one supervisor tick while it follows chunks: `python benchmarks/supervisor_tick.py [--json]`.

Prints p50, p99 and maximum of every tick (the bar: p99 <= 1.5 ms), of those without a new chunk (limiter, executor,
look-ahead, all checks, at times three rows of the last chunk), of those that accept one (inverse kinematics of the rows
that are read next on top), and of the limiter and the look-ahead (box, self-collision, singularity at the stop pose)
alone. CPU time is what the code needs; wall time is what a busy machine makes of it.
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


def measure(ticks: int) -> dict[str, dict[str, float]]:
    loop = Loop()
    loop.arm()
    loop.instruct()
    update = loop.supervisor.update
    times: list[tuple[float, float]] = []  # (wall, CPU)

    def timed(now_s, inputs):
        start = time.perf_counter(), time.thread_time()
        decision = update(now_s, inputs)
        times.append((time.perf_counter() - start[0], time.thread_time() - start[1]))
        return decision

    loop.supervisor.update = timed
    goals = np.random.default_rng(0).uniform([0.35, -0.3, 0.1], [0.6, 0.3, 0.4], (20, 3))
    accepted, plain, before = [], [], 0
    gc.collect()
    gc.freeze()  # as the node does when it is activated
    for k in range(ticks):
        loop.goal_p = goals[k // 200 % len(goals)]
        now_accepted = loop.tick().counters.chunks_accepted
        (accepted if now_accepted > before else plain).append(times[-1])
        before = now_accepted
    limiter, state, limiting = Limiter(loop.contract.limits, loop.contract.period_s), MotionState.at_rest(loop.q), []
    look_ahead, looking = LookAhead(loop.contract, loop.kinematics), []
    for k in range(ticks):
        start = time.perf_counter(), time.thread_time()
        state = limiter.step(state, loop.q + 0.3 * np.sin(0.02 * k), np.zeros(loop.q.size), loop.contract.period_s)
        middle = time.perf_counter(), time.thread_time()
        look_ahead.look(state)
        end = time.perf_counter(), time.thread_time()
        limiting.append((middle[0] - start[0], middle[1] - start[1]))
        looking.append((end[0] - middle[0], end[1] - middle[1]))
    rows = {
        "every_tick": accepted + plain,
        "tick": plain,
        "tick_with_new_chunk": accepted,
        "limiter": limiting,
        "look_ahead": looking,
    }
    return {
        name: {"n": len(t)} | {f"{kind}_{label}_ms": _ms(t, column, p) for column, kind in enumerate(("wall", "cpu"))
                               for label, p in (("p50", 50), ("p99", 99), ("max", 100))}
        for name, t in rows.items()
    }  # fmt: skip


def _ms(times: list[tuple[float, float]], column: int, percentile: float) -> float:
    return round(float(np.percentile(np.array(times)[:, column], percentile)) * 1e3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ticks", type=int, default=TICKS)
    arguments = parser.parse_args()
    result = measure(arguments.ticks)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, row in result.items():
        print(f"{name:<20}", "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
