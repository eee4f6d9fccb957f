"""A cancelled goal's instruction is closed once, whichever came first."""

import pytest

pytest.importorskip("rclpy")

from vla_ros.nodes.execute import OpenGoals

pytestmark = pytest.mark.unit
GOAL = b"goal"


def test_instruction_of_an_open_goal_is_closed_by_the_cancel_itself():
    goals = OpenGoals()
    assert not goals.opened(GOAL, 7)
    assert goals.cancel(GOAL) == 7
    assert goals.cancelled(GOAL)


def test_goal_that_was_cancelled_before_it_had_an_instruction_closes_it_when_it_has_one():
    goals = OpenGoals()
    assert goals.cancel(GOAL) == 0
    assert goals.opened(GOAL, 7)


def test_goal_that_has_ended_leaves_nothing_behind():
    goals = OpenGoals()
    goals.opened(GOAL, 7)
    goals.cancel(GOAL)
    goals.ended(GOAL)
    assert goals.cancel(GOAL) == 0 and not goals.opened(b"another", 8)
