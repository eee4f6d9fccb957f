"""The way back along the executed path, an operator's command."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda, panda_kinematics

from vla_ros.core.retrace import POSITIONS, RETREAT_RAD_S, STEP_RAD, ExecutedPath
from vla_ros.core.rules import Reason
from vla_ros.core.types import CommandMode, Severity

pytestmark = pytest.mark.unit
READY = panda().poses.ready_rad


def travelled(seconds: float = 2.0) -> tuple[Loop, np.ndarray]:
    """A loop that has moved round a corner, and its commands (m, n) on the way."""
    loop = Loop(goal_p=np.array([0.5, 0.2, 0.2]), speed_m_s=0.25)
    loop.arm()
    loop.instruct()
    loop.run(0.5 * seconds)
    loop.goal_p = np.array([0.5, 0.2, 0.35])
    loop.run(0.5 * seconds)
    return loop, loop.stream()[1]


def from_path(q: np.ndarray, path: np.ndarray) -> float:
    """Distance of one position from the nearest commanded one [rad], largest joint."""
    return float(np.abs(path - q).max(axis=1).min())


def test_the_arm_goes_back_along_the_way_it_came_slowly_and_inside_every_limit() -> None:
    loop, path = travelled()
    start, began = path[0], len(loop.decisions)
    assert np.abs(path[-1] - start).max() > 0.2
    assert loop.tick(retreats=("r",)).replies[0].accepted
    decision = loop.run(8.0)
    assert decision.phase == "idle" and decision.instruction_id == 0 and decision.severity is Severity.RUN
    assert np.abs(decision.command.q_rad - start).max() < STEP_RAD  # where the path began
    back = loop.decisions[began + 50 :]  # after the brake
    assert max(from_path(d.command.q_rad, path) for d in back) < 0.015
    speeds = [panda_kinematics().speeds(d.command.q_rad, d.command.qd_rad_s).max() for d in back]
    assert 0.05 < max(speeds) <= panda().speed.reduced_m_s
    assert max(np.abs(d.command.qd_rad_s).max() for d in back) <= 1.5 * RETREAT_RAD_S
    assert any(d.command.mode is CommandMode.MOVE for d in back)
    assert_stream_inside_limits(loop)


def test_an_interrupted_retreat_goes_on_after_a_rearm_and_never_by_itself() -> None:
    loop, path = travelled()
    loop.tick(retreats=("r",))
    loop.run(1.2)
    stopped = loop.run(1.0, interrupts=1)
    assert from_path(stopped.command.q_rad, path) < 0.02
    assert (loop.run(0.5).command.q_rad == stopped.command.q_rad).all()
    refused = loop.tick(retreats=("r",)).replies[0]
    assert not refused.accepted and "rearm" in refused.reason
    assert loop.tick(rearms=("t",)).replies[0].accepted
    assert (loop.run(0.5).command.q_rad == stopped.command.q_rad).all()
    before = np.abs(stopped.command.q_rad - path[0]).max()
    loop.tick(retreats=("r",))
    assert np.abs(loop.run(8.0).command.q_rad - path[0]).max() < min(STEP_RAD, before)
    assert_stream_inside_limits(loop)


def test_a_retreat_is_refused_with_the_reason_where_there_is_no_way_back_or_the_arm_must_not_move() -> None:
    loop = Loop()
    assert "rearm" in loop.tick(retreats=("r",)).replies[0].reason  # start-up is a stop
    loop.arm()
    assert "no executed path" in loop.tick(retreats=("r",)).replies[0].reason
    loop, _ = travelled()
    loop.joints_on = False
    loop.run(0.2)
    reply = loop.tick(retreats=("r",)).replies[0]
    assert not reply.accepted and "state_stale" in reply.reason
    assert "rearm" in loop.tick(retreats=("r",), interrupts=1).replies[0].reason


@pytest.mark.parametrize("held_by", ["policy gone", "workspace"])
def test_a_retreat_leads_out_of_a_hold(held_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, path = travelled(1.0)
    if held_by == "policy gone":
        loop.policy_on, loop.chunks = False, type(loop.chunks)()
    else:
        upper = loop.kinematics.tool_pose(loop.q)[1] + 0.03
        box = dataclasses.replace(panda().workspace, upper_m=upper)
        monkeypatch.setattr(loop.supervisor._mover._look_ahead, "_box", box)
    while loop.tick().severity < Severity.HOLD:
        assert len(loop.decisions) < 400
    assert loop.decisions[-1].reason is (Reason.WORKSPACE if held_by == "workspace" else Reason.CHUNK_STALE)
    loop.run(0.2)
    assert loop.tick(retreats=("r",)).replies[0].accepted
    decision = loop.run(8.0)
    assert decision.severity is Severity.RUN and np.abs(decision.command.q_rad - path[0]).max() < STEP_RAD
    assert_stream_inside_limits(loop)


def test_a_request_that_a_hold_outlasts_is_void() -> None:
    loop, _ = travelled(1.0)
    loop.tick(retreats=("r",))
    loop.joints_on = False
    loop.run(0.2)
    assert loop.decisions[-1].severity is Severity.HOLD
    loop.run(0.2)  # before it is a stop
    loop.joints_on = True
    stood = loop.run(1.0)
    assert (loop.run(2.0).command.q_rad == stood.command.q_rad).all()


def test_a_new_instruction_or_home_ends_a_retreat() -> None:
    loop, _ = travelled()
    loop.tick(retreats=("r",))
    loop.run(1.2)
    loop.goal_p = np.array([0.5, -0.1, 0.3])
    loop.instruct("put it down")
    loop.run(2.5)
    assert np.linalg.norm(loop.kinematics.tool_pose(loop.q)[1] - loop.goal_p) < 0.02
    loop.tick(retreats=("r",))
    loop.run(1.0)
    loop.tick(home=("h",))
    assert np.allclose(loop.run(7.0).command.q_rad, panda().poses.home_rad)
    assert_stream_inside_limits(loop)


def test_the_path_is_bounded_taken_up_on_the_way_back_and_forgets_what_it_cannot_know() -> None:
    path, direction = ExecutedPath(), np.ones(7)
    for s in np.arange(0.0, 3.0, 0.01):
        path.record(s * direction)
    way = path.way_back(2.99 * direction, panda_kinematics(), 10.0)
    assert POSITIONS * STEP_RAD - 0.05 < 2.99 - way.knots[-1][0] < 1.5 * POSITIONS * STEP_RAD
    for s in np.arange(2.99, 2.0, -0.01):
        path.record(s * direction)
    way = path.way_back(2.0 * direction, panda_kinematics(), 10.0)
    assert (np.diff(way.knots[:, 0]) <= 0.5 * STEP_RAD).all()  # no going forth again
    assert not way.at(0.0)[1].any() and not way.at(1e9)[1].any()
    path.clear()
    assert not path.leads_away_from(2.0 * direction)


def test_a_hand_that_moved_the_stopped_arm_ends_the_known_path() -> None:
    loop, _ = travelled(1.0)
    loop.run(1.0, interrupts=1)
    loop.q = loop.q + 0.05
    loop.pipeline.clear()
    loop.pipeline.extend([(loop.q, loop.qd * 0.0)] * 3)
    loop.arm_on = False
    loop.run(0.2)
    loop.tick(rearms=("t",))
    loop.arm_on = True
    assert "no executed path" in loop.tick(retreats=("r",)).replies[0].reason
