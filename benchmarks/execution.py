"""What the path from chunks to motion costs: the expert, played through executor, supervisor and arm controller.

`python benchmarks/execution.py [--episodes 40] [--noise-m 0.004] [--json]`. The expert sees the world's true state, so
every failure belongs to the execution. Noise is added to each chunk: one offset for all rows and one for each row.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation
from vla_ros.policy.runtime import PolicyOutput
from vla_ros.sim.expert import label
from vla_ros.sim.tasks import FAMILIES
from vla_ros.sim.world import World
from vla_ros.training.evaluate import Execution, Rollout, report


class ExpertPolicy:
    """Speaks like a policy and looks at the world instead of its pictures."""

    def __init__(self, noise_m: float) -> None:
        self.noise_m = noise_m
        self.world: World | None = None

    def judge(self, text: str) -> None:
        """Knows every sentence."""

    def infer(self, observation: Observation, text: str, rng: np.random.Generator) -> PolicyOutput:
        plan = label(self.world, [self.world.task])
        data = plan.chunk[0].copy()  # (rows, 7)
        data[:, :3] += self.noise_m * (rng.standard_normal(3) + rng.standard_normal((len(data), 3)))
        return PolicyOutput(data=data, done_probability=float(plan.done[0]), confidence=1.0, inference_s=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--noise-m", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    policy = ExpertPolicy(arguments.noise_m)
    rollout = Rollout(contracts.load("panda"), policy, Execution("naive"))
    policy.world = rollout.world
    blank = np.zeros((224, 224, 3), np.uint8)
    rollout.world.render = lambda camera: blank  # nobody looks, and rendering is most of the time
    names = list(FAMILIES)
    episodes = [rollout.run(arguments.seed + k, names[k % len(names)]) for k in range(arguments.episodes)]
    result = report(episodes) | {"noise_m": arguments.noise_m}
    if arguments.json:
        print(json.dumps(result))
        return
    for key in (
        "episodes",
        "success",
        "wrong_object",
        "command_violations",
        "done_declared",
        "jerk_mean",
        "duration_s",
    ):
        print(f"{key:<20} {result[key]}")


if __name__ == "__main__":
    main()
