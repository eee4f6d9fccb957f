"""Gripper faults in the closed loop of the core: fingers that do not move (C8), an object that is lost (C9)."""

from __future__ import annotations

import numpy as np
import pytest
from core_loop import Loop

from vla_ros.core.decision import Decision
from vla_ros.core.gripper import RETRIES_MAX
from vla_ros.core.rules import Reason
from vla_ros.core.types import Severity

pytestmark = pytest.mark.unit


class Fingers(Loop):
    """They close on an object, or do not move."""

    object_m = 0.0
    stuck = False

    def tick(self, dt_s: float | None = None, **inputs) -> Decision:
        before = self.width
        decision = super().tick(dt_s, **inputs)
        self.width = before if self.stuck else max(self.width, self.object_m)
        return decision


def _moving(**changes) -> Fingers:
    loop = Fingers(goal_p=np.array([0.55, 0.25, 0.3]), opening=0.0, **changes)
    loop.arm()
    loop.instruct()
    return loop


def _until(loop: Loop, reason: Reason, limit_s: float = 3.0) -> Decision:
    for _ in range(round(limit_s / loop.contract.period_s)):
        decision = loop.tick()
        if decision.reason is reason:
            return decision
    raise AssertionError(f"{reason.value} did not come")


def test_C8_fingers_that_do_not_move_get_two_more_tries_then_the_instruction_ends() -> None:
    loop = _moving()
    loop.stuck = True
    for _ in range(RETRIES_MAX):
        assert _until(loop, Reason.GRIPPER_STUCK).severity is Severity.HOLD
        assert loop.run(1.0).instruction_id and loop.decisions[-1].reason is Reason.GRIPPER_STUCK  # waits
        assert loop.tick(rearms=("r",)).replies[0].accepted
        assert loop.run(0.5).phase == "moving"
    assert _until(loop, Reason.GRIPPER_STUCK).instruction_id == 0
    assert loop.run(1.0).phase == "holding"


def test_C9_after_a_drop_nothing_moves_before_another_instruction() -> None:
    loop = _moving()
    loop.object_m = 0.04
    loop.run(1.5)
    loop.object_m, loop.width, dropped_s = 0.0, 0.0, loop.now_s
    assert _until(loop, Reason.OBJECT_DROPPED, 0.1).severity is Severity.HOLD
    assert loop.supervisor.executor.flushed_at_s > dropped_s
    loop.run(1.0)  # chunks keep coming
    assert loop.tick(rearms=("r",)).replies[0].accepted
    assert loop.run(1.0).reason is Reason.OBJECT_DROPPED  # the old task goes on without its object: never
    loop.opening = 1.0
    loop.instruct("pick it up again")
    assert loop.run(1.0).phase == "moving"


def test_C9_a_rearm_is_enough_where_no_instruction_is_open() -> None:
    loop = _moving()
    loop.object_m = 0.04
    loop.run(1.5)
    loop.object_m = loop.width = 0.0
    open_id = _until(loop, Reason.OBJECT_DROPPED, 0.1).instruction_id
    loop.run(1.0, closes=(open_id,))
    assert loop.decisions[-1].reason is Reason.OBJECT_DROPPED
    assert not loop.tick(home=("h",)).replies[0].accepted
    assert loop.tick(rearms=("r",)).replies[0].accepted
    loop.tick()
    assert loop.tick(home=("h",)).replies[0].accepted
