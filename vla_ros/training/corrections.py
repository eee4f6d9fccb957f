"""Lets a policy drive and writes down, at every picture it saw, what the expert would have done from there.

The states that a policy's own mistakes lead to are missing from demonstrations; the expert, being a function of the
state, can label them (DAgger, Ross et al. 2011, 1011.0686). The result is a data set like any other: give it to the
trainer beside the demonstrations.

    python -m vla_ros.training.corrections --policy RUN_OR_POLICY --out DIR --episodes 500 --workers 2 [--ray ADDRESS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import VlaError
from vla_ros.policy import manifest as manifests
from vla_ros.policy.runtime import PolicyRuntime
from vla_ros.policy.runtimes import open_policy
from vla_ros.sim import choices, expert
from vla_ros.sim.demonstrations import EPISODES_PER_SHARD, Results, Shard, fill, lessons, options, totals
from vla_ros.sim.tasks import FAMILIES, TAUGHT_PAIRS
from vla_ros.training.evaluate import Rollout

STREAM = 0xC0223C7  # first number of every seed here: neither a demonstration's nor an evaluation's

_ROLLOUT: Rollout | None = None  # one per worker process


def driver(folder: Path, contract: Contract) -> PolicyRuntime:
    """A policy folder as it is executed on a robot, a run folder or a snapshot of one in PyTorch."""
    return open_policy(folder, contract, "int8" if (folder / manifests.FILE_NAME).exists() else "torch")


def make_shard(folder: Path, seed: int, index: int, robot: str, policy: Path, families: tuple[str, ...]) -> Results:
    """Play the episodes of one shard and write it. Runs in a worker process."""
    global _ROLLOUT
    if _ROLLOUT is None:
        contract = contracts.load(robot)
        _ROLLOUT = Rollout(contract, driver(policy, contract))
        _ROLLOUT.world.pairs = TAUGHT_PAIRS
    rollout, shard = _ROLLOUT, Shard()
    results: Results = []
    for number in range(index * EPISODES_PER_SHARD, (index + 1) * EPISODES_PER_SHARD):
        rng = np.random.default_rng((STREAM, seed, number, 2))

        def correct(pictures: dict[str, np.ndarray], rng: np.random.Generator = rng) -> None:
            labels = expert.label(rollout.world, lessons(rollout.world, rng))
            shard.record(rollout.world, rollout.cameras, pictures, labels)

        episode = rollout.run(
            (STREAM, seed, number), families[number % len(families)], on_frame=correct, suitable=choices.teachable
        )
        results.append((episode.success, False))
    shard.save(folder, f"{index:04d}")
    return results


def main() -> None:
    """Command line."""
    parser = options("Let a policy drive and have the expert correct it.", 500)
    parser.add_argument(
        "--policy", type=Path, required=True, help="a policy folder, a run folder or one of its snapshots"
    )
    parser.add_argument(
        "--families",
        default=",".join(FAMILIES),
        help="played in turn; named twice, seen more often",
    )
    a = parser.parse_args()
    families = tuple(a.families.split(","))
    if unknown := sorted(set(families) - set(FAMILIES)):
        parser.error(f"--families names {', '.join(unknown)}, allowed: {', '.join(FAMILIES)}")
    policy = a.policy.absolute()  # a worker may stand elsewhere
    try:
        contract = contracts.load(a.robot)
        driver(policy, contract)  # a wrong one is told before there are workers
        outcomes = fill(
            a.out, a.episodes, a.seed, contract.hash, a.workers, make_shard, a.robot, policy, families, ray=a.ray
        )
    except VlaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps(totals(a.out) | {"success": float(np.mean([ok for ok, _ in outcomes])) if outcomes else None}))


if __name__ == "__main__":
    from vla_ros.training import corrections  # workers must find what they are to do by the module's name

    corrections.main()
