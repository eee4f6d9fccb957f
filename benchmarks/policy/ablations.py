"""Ablations that need no training: one policy, several ways to execute it, the same scenes. Prints a Markdown table.

    python benchmarks/policy/ablations.py delays    naive and prefix chunking, chunks 0 to 6 rows late
    python benchmarks/policy/ablations.py rows      1, 4, 8, 16 rows executed per inference
    python benchmarks/policy/ablations.py ensembles prefix, naive, ACT's and CogACT's ensemble; guided on torch
    python benchmarks/policy/ablations.py swap      contrasting sentences in the same scene

Options: --policy DIR --runtime int8|fp32|torch --episodes 200 --seed 900 --family F --workers N
"""

from __future__ import annotations

import argparse
import sys

from ablations_table import HEADER, NOTES, SWAP_HEADER, Arm, Scenes, compare, markdown, play, swap_rows

from vla_ros.core.errors import VlaError
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.evaluate import RUNTIMES, Execution

DELAYS = range(7)
ROWS = (1, 4, 8, 16)


def delays(runtime: str) -> list[Arm]:
    """Each prefix arm against the naive one that is as late."""
    arms = []
    for d in DELAYS:
        arms.append(Arm(f"naive, {d} rows late", Execution("naive", d), f"naive, {DELAYS[0]} rows late" if d else None))
        arms.append(Arm(f"prefix, {d} rows late", Execution("prefix", d), f"naive, {d} rows late"))
    return arms


def rows(runtime: str) -> list[Arm]:
    """Against the policy's own rate, 7.5 chunks per second: 2.7 rows."""
    usual = Arm("prefix, 2.7 rows")
    return [usual, *(Arm(f"prefix, {n} rows", Execution("prefix", 0, n), usual.label) for n in ROWS)]


def ensembles(runtime: str) -> list[Arm]:
    """A chunk for every row, as ensembles want it, and at the policy's own rate."""
    kinds = ("naive", "prefix", "ensemble", "adaptive", *(("guided",) if runtime == "torch" else ()))
    arms = []
    for n, rate in ((None, "2.7 rows"), (1, "1 row")):
        for kind in kinds:
            against = None if kind == "naive" else f"naive, {rate}"
            arms.append(Arm(f"{kind}, {rate}", Execution(kind, 0, n), against))
    return arms


def swap(runtime: str) -> list[Arm]:
    return [Arm("prefix", Execution("prefix")), Arm("naive", Execution("naive"), "prefix")]


STUDIES = {"delays": delays, "rows": rows, "ensembles": ensembles, "swap": swap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument(
        "--policy", help="folder of a policy or, with --runtime torch, of a run; default: the shipped one"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="int8")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--family", choices=list(FAMILIES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", type=int, help="only the first so many, to try it out")
    a = parser.parse_args()
    arms = STUDIES[a.study](a.runtime)[: a.arms]
    scenes = Scenes(a.episodes, a.seed, a.family, a.study == "swap", a.workers)
    try:
        played = play(arms, scenes, a.policy, a.runtime)
    except VlaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{a.episodes} episodes, seeds from {a.seed}, family {a.family or 'all'}, runtime {a.runtime}\n")
    if a.study == "swap":
        print(markdown(SWAP_HEADER, swap_rows(played)) + "\n")
    print(markdown(HEADER, compare(arms, played)) + "\n\n" + NOTES)


if __name__ == "__main__":
    main()
