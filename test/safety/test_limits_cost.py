"""The benchmark of what the limits cost plays today's evaluation, with them and without."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from core_loop import panda, panda_kinematics
from script_loader import load_script

from vla_ros.policy.runtime import PolicyOutput
from vla_ros.training.rollout import Rollout

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/safety/limits_cost.py")


class Upward:
    """Lifts the hand by 4 cm in each chunk, and says that it is done with the fifth one."""

    manifest = SimpleNamespace(prefix_max=4)

    def __init__(self) -> None:
        self.chunks = 0

    def judge(self, text: str) -> None:
        """Knows every sentence."""

    def infer(self, observation, text, rng, prefix=None) -> PolicyOutput:
        self.chunks += 1
        data = np.zeros((16, 7))
        data[:, 2], data[:, 6] = np.linspace(0.0025, 0.04, 16), 1.0
        return PolicyOutput(data, done_probability=float(self.chunks > 4), confidence=1.0, inference_s=0.0)


def test_both_players_move_the_arm_and_end_when_the_policy_is_done(script: ModuleType) -> None:
    limited = Rollout(panda(), Upward())
    blank = np.zeros((224, 224, 3), np.uint8)
    limited.world.render = lambda camera: blank
    risen = []
    for player in (limited, script.Unlimited(limited)):
        player._policy = Upward()
        began = panda_kinematics().tool_pose(panda().poses.ready_rad)[1][2]
        episode = player.run(3, "pick")
        risen.append(limited.world.tool_pose()[1][2] - began)
        assert episode.done and 0.8 < episode.duration_s < 4.0
    assert min(risen) > 0.02 and abs(risen[0] - risen[1]) < 0.03


def test_success_is_compared_scene_by_scene_with_an_interval(script: ModuleType) -> None:
    kept = {"wrong_object": False, "done": True, "duration_s": 4.0, "detail": ""}
    pairs = [{"seed": k, "on": kept | {"success": k > 1}, "off": kept | {"success": True}} for k in range(20)]
    result = script.compare(pairs, 0)
    assert result["points"] == -10.0 and not result["ok"] and result["mcnemar_p"] == 0.5
    low, high = result["points_95"]
    assert low < -10.0 < high and "McNemar p = 0.50" in script.table(result)
