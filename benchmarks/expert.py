"""Success of the scripted expert over fresh scenes.

    python benchmarks/expert.py [--episodes 200] [--seed 0] [--family put]

Demonstrations are only as good as the expert; the bar is 95 % per family. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from vla_ros.sim.demonstrations import Demonstrator
from vla_ros.sim.expert import label
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.evaluate import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="one of them; may be repeated")
    arguments = parser.parse_args()
    player = Demonstrator("panda", render=False)
    report = {}
    for family in arguments.family or FAMILIES:
        wins = wrong = declared = 0
        durations = []
        for seed in range(arguments.seed, arguments.seed + arguments.episodes):
            player.world.reset(seed, family)
            player.play(np.random.default_rng(seed), None, disturbed=False)
            verdict = player.world.outcome()
            wins += verdict.success
            wrong += verdict.wrong_object or verdict.wrong_direction
            declared += bool(label(player.world, [player.world.task], rows=1).done[0])
            durations.append(player.world.time_s)
        low, high = wilson(wins, arguments.episodes)
        report[family] = {
            "n": arguments.episodes,
            "success": wins / arguments.episodes,
            "wilson": [round(low, 4), round(high, 4)],
            "wrong": wrong / arguments.episodes,
            "done": declared / arguments.episodes,
            "duration_s": round(float(np.mean(durations)), 2),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
