"""Success of the scripted expert over fresh scenes: `python benchmarks/expert.py [--episodes 200] [--seed 0]`.

Demonstrations are only as good as the expert; the bar is 95 % per family. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from vla_ros.sim.demonstrations import Demonstrator
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.evaluate import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    player = Demonstrator("panda")
    report = {}
    for family in FAMILIES:
        wins = wrong = 0
        for seed in range(arguments.seed, arguments.seed + arguments.episodes):
            player.world.reset(seed, family)
            player.play(np.random.default_rng(seed), None, disturbed=False)
            verdict = player.world.outcome()
            wins += verdict.success
            wrong += verdict.wrong_object
        low, high = wilson(wins, arguments.episodes)
        report[family] = {
            "n": arguments.episodes,
            "success": wins / arguments.episodes,
            "wilson": [round(low, 4), round(high, 4)],
            "wrong_object": wrong / arguments.episodes,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
