"""The look at the stop pose: which poses it forbids, and that table-top work is none of them."""

from __future__ import annotations

import numpy as np
import pinocchio as pin
import pytest
from core_loop import panda, panda_kinematics
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ros.core.collision import HOLD_M, SelfCollision
from vla_ros.core.limits import MotionState
from vla_ros.core.lookahead import COLLISION_SLOW_M, SINGULAR_SLOW, LookAhead, Ratchet

pytestmark = pytest.mark.unit
READY, LIMITS = panda().poses.ready_rad, panda().limits


def test_table_top_work_with_the_tool_pointing_down_is_never_slowed() -> None:
    kinematics, look_ahead = panda_kinematics(), LookAhead(panda(), panda_kinematics())
    rng = np.random.default_rng(0)
    R_down = kinematics.tool_pose(READY)[0]
    poses = [READY, panda().poses.home_rad, *(READY + rng.uniform(-0.2, 0.2, (100, 7)))]
    while len(poses) < 400:  # wider than where objects and bowls are put
        p = rng.uniform([0.36, -0.36, 0.005], [0.66, 0.36, 0.30])
        R = pin.exp3(np.array([0.0, 0.0, rng.uniform(-0.8, 0.8)])) @ R_down
        q, reached = kinematics.inverse(R, p, READY)
        if reached:
            poses.append(q)
    for q in poses:
        outlook = look_ahead.look(MotionState.at_rest(q))
        assert outlook.clearance_m > COLLISION_SLOW_M and outlook.condition < SINGULAR_SLOW, q.tolist()


def test_pairs_that_the_arm_keeps_apart_by_its_build_are_left_out_and_no_other() -> None:
    collision, rng = SelfCollision(panda(), panda_kinematics()), np.random.default_rng(1)
    link = lambda shape: shape.rsplit("_", 1)[0].removeprefix("panda_")  # noqa: E731
    pairs = {frozenset(map(link, pair)) for pair in collision.pairs}
    assert {
        frozenset(p) for p in (("link5", "hand"), ("link2", "hand"), ("link0", "link6"), ("link1", "link5"))
    } <= pairs
    neighbours = [(f"link{k}", f"link{k + 1}") for k in range(7)] + [("link7", "hand"), ("hand", "leftfinger")]
    assert not pairs & {frozenset(p) for p in (*neighbours, ("link5", "link7"))}
    assert (
        min(collision.distance(READY + rng.uniform(-0.1, 0.1, 7)) for _ in range(20)) > 0.05
    )  # nothing touches always


def test_the_condition_number_grows_where_the_arm_loses_a_direction() -> None:
    kinematics = panda_kinematics()
    stretched = READY.copy()
    stretched[3] = LIMITS.q_hi_rad[3]
    assert kinematics.condition(READY) < 6.0 < 20.0 < kinematics.condition(stretched)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-0.02, 0.02), min_size=1, max_size=60), st.floats(0.0, 0.05))
def test_what_is_outside_never_gets_worse_by_more_than_the_slack_however_slowly(steps: list, start: float) -> None:
    """An arm that obeys: it takes a step only if the ratchet lets it."""
    bound, slack = 0.003, 0.002
    ratchet, now, best = Ratchet(bound, slack), start, start
    assert not ratchet.exceeded(now, now, True)
    for step in steps:
        if not ratchet.exceeded(now, now + step, False):
            now += step
        best = min(best, now)
        assert now <= max(bound, best + slack) + 1e-12
    assert not ratchet.exceeded(now, now - 1e-4, False) or now > bound  # and the way back is open
    assert not ratchet.exceeded(now, now, True)


@pytest.mark.parametrize("start", [0.0, 0.0028, 0.02])
def test_an_arm_that_rests_again_and_again_does_not_get_out_by_the_slack_each_time(start: float) -> None:
    bound, slack, step = 0.003, 0.003, 1e-4
    ratchet, now = Ratchet(bound, slack), start

    def creep() -> float:
        here = now
        while not ratchet.exceeded(here, here + step, False):
            here += step
        return here

    for _ in range(20):
        assert not ratchet.exceeded(now, now, True)
        now = creep()
    assert start < now <= max(bound + slack / 2.0, start) + 4.0 / 3.0 * slack
    for _ in range(3):  # back in three steps, a rest after each
        now -= slack
        assert not ratchet.exceeded(now, now, False) and not ratchet.exceeded(now, now, True)
    assert creep() > now + 0.9 * slack
    now += 0.05  # by hand: it is taken as it stands
    assert not ratchet.exceeded(now, now, True) and creep() > now + 0.9 * slack


def test_an_arm_that_creeps_towards_itself_is_held_like_a_fast_one() -> None:
    look_ahead, collision = LookAhead(panda(), panda_kinematics()), SelfCollision(panda(), panda_kinematics())
    q, v = READY.copy(), np.zeros(7)
    q[5], v[5] = 0.35, -0.01
    assert collision.distance(q) > 0.03
    look_ahead.look(MotionState.at_rest(q))
    while not look_ahead.look(MotionState(q, v, np.zeros(7))).self_collision:
        q = q + 0.01 * v
        assert collision.distance(q) > HOLD_M - 0.001
