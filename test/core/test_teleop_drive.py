"""A gamepad, a keyboard and their ends, through the supervisor to an arm that follows: in fake time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda_kinematics

from vla_ros.core.decision import Decision
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import SETTLED_RAD_S
from vla_ros.core.teleop import Speeds, Teleoperation
from vla_ros.core.teleop_drive import PERIOD_S, STATE_OLD_S, STOP_FOR_S, Driver, Word
from vla_ros.core.teleop_input import JOY_STALE_S, Act, Pad, PadMapping
from vla_ros.core.types import Severity, Source

pytestmark = pytest.mark.unit

DEADMAN, AHEAD = PadMapping().deadman, PadMapping().axes["x"]
MOVING_M_S, STANDING_M_S = 0.02, 0.003  # let go, the arm settles within a millimetre


class Desk:
    """A person's driver beside the supervisor's loop, as the node runs it: looked at every PERIOD_S."""

    def __init__(self, text: str = "wander about", policy_on: bool = False) -> None:
        self.loop = Loop(policy_on=policy_on, goal_p=np.array([0.55, 0.3, 0.15]))
        hand = Teleoperation(self.loop.contract, panda_kinematics(), Speeds((0.1,)))
        self.driver = Driver(self.loop.contract, hand, Pad(PadMapping()))
        self.alive = self.connected = True  # the person's process; its way to the supervisor
        self.stick: float | None = None  # what the pad says 20 times a second; None: it is unplugged
        self.held = False  # its deadman
        self.proposed = self.interrupts = 0
        self._looked_s = -math.inf
        self.loop.arm()
        if policy_on:
            self.loop.instruct(text)
            self.go(0.6)
        self.ask(Source.TELEOPERATION)
        if not policy_on:
            self.loop.tick(instructs=(("i", text, 0),))
            self.loop.instruction_id = self.loop.decisions[-1].instruction_id
        self.go(0.4)

    @property
    def now(self) -> Decision:
        return self.loop.decisions[-1]

    def ask(self, source: Source) -> None:
        decision = self.loop.tick(sources=(("s", source),))
        while not decision.replies:
            decision = self.loop.tick()
        assert decision.replies[0].accepted

    def go(self, seconds: float) -> Decision:
        for _ in range(round(seconds / self.loop.contract.period_s)):
            due = self.alive and self.loop.now_s - self._looked_s >= PERIOD_S - 1e-6
            self.loop.tick(**(self._look() if due else {}))
        return self.now

    def _look(self) -> dict:
        loop, driver = self.loop, self.driver
        self._looked_s, now = loop.now_s, self.now
        if self.connected:
            driver.word = Word(loop.now_s, now.instruction_id, now.phase, now.latched)
            driver.told(now.source is Source.TELEOPERATION)
        if self.stick is not None:
            axes = [self.stick if k == AHEAD else 0.0 for k in range(8)]
            driver.pad.take(axes, [int(self.held and k == DEADMAN) for k in range(11)], loop.now_s)
        stop = driver.stop_again(loop.now_s)
        self.interrupts += stop
        rows = driver.propose(loop.now_s, loop.sample(), round(loop.now_s * 1e9))
        if rows is None:
            return {"interrupts": int(stop)}
        self.proposed += 1
        chunk = loop.make_chunk(
            source=Source.TELEOPERATION, writer_id=33, data=rows, instruction_id=driver.word.instruction_id
        )
        return {"interrupts": int(stop), "chunks": (chunk,)}

    def push(self, seconds: float = 1.0) -> None:
        """Forward with the deadman held: the arm moves."""
        self.stick, self.held = 1.0, True
        assert self.go(seconds).tool_speed_m_s > MOVING_M_S and self.now.phase == "moving"

    def stands(self) -> bool:
        return self.now.tool_speed_m_s < STANDING_M_S and float(np.abs(self.loop.qd).max()) < SETTLED_RAD_S


def test_gamepad_moves_the_arm_only_while_its_deadman_is_held() -> None:
    desk = Desk()
    desk.stick, desk.held = 1.0, False
    desk.go(0.5)
    assert desk.stands() and desk.driver.pad.alive(desk.loop.now_s)
    desk.push()
    x0 = panda_kinematics().tool_pose(desk.loop.q)[1][0]
    desk.held = False  # the stick is still pushed
    desk.go(0.7)
    assert desk.stands() and panda_kinematics().tool_pose(desk.loop.q)[1][0] - x0 < 0.05
    assert desk.now.severity < Severity.HOLD
    assert_stream_inside_limits(desk.loop)


def test_gamepad_that_is_unplugged_in_motion_leaves_an_arm_that_stands_and_may_go_on() -> None:
    desk = Desk()
    desk.push()
    desk.stick = None
    desk.go(JOY_STALE_S + 0.7)
    assert desk.stands() and not desk.driver.pad.alive(desk.loop.now_s)
    assert desk.now.severity < Severity.HOLD  # the person is still there, and proposes to stand
    desk.push()
    assert_stream_inside_limits(desk.loop)


def test_person_whose_process_is_gone_leaves_an_arm_that_is_held() -> None:
    """No hand-back, as after SIGKILL or with the machine: chunks end, and nothing else says so."""
    desk = Desk()
    desk.push()
    desk.alive = False
    desk.go(1.5)
    assert desk.stands() and (desk.now.severity, desk.now.reason.value) == (Severity.HOLD, "chunk_stale")
    assert desk.now.source is Source.TELEOPERATION  # nobody took over: the policy does not go on by itself
    assert_stream_inside_limits(desk.loop)


def test_person_who_leaves_hands_back_and_what_no_policy_was_asked_to_do_is_closed() -> None:
    """What the node does when the connection breaks: the arm brakes first."""
    desk = Desk()
    desk.push()
    desk.alive = False
    desk.ask(Source.POLICY)
    assert (desk.now.source, desk.now.instruction_id, desk.now.phase) == (Source.POLICY, 0, "idle")
    desk.go(0.3)
    assert desk.stands()
    assert_stream_inside_limits(desk.loop)


def test_correction_by_gamepad_ends_with_the_policy_going_on() -> None:
    desk = Desk("pick up the red cube", policy_on=True)
    opened = desk.now.instruction_id
    desk.push()
    assert desk.now.instruction_id == opened
    desk.ask(Source.POLICY)
    proposed = desk.proposed
    desk.go(0.5)
    assert (desk.now.phase, desk.now.instruction_id) == ("moving", opened) and desk.now.tool_speed_m_s > MOVING_M_S
    desk.go(0.2)
    assert desk.proposed - proposed <= 1  # one may be on its way; a pushed stick says nothing to a policy's arm
    assert_stream_inside_limits(desk.loop)


def test_driver_that_does_not_hear_the_supervisor_proposes_nothing() -> None:
    desk = Desk()
    desk.push()
    desk.connected = False
    desk.go(STATE_OLD_S + 0.1)
    proposed = desk.proposed
    desk.go(0.5)
    assert desk.proposed == proposed and desk.now.severity is Severity.HOLD and desk.stands()


def test_stop_is_repeated_until_it_is_seen_and_no_longer_than_that() -> None:
    desk = Desk()
    desk.push()
    desk.driver.stop(desk.loop.now_s)
    desk.go(0.3)
    assert (desk.now.reason.value, desk.now.latched) == ("interrupt", True) and 1 <= desk.interrupts <= 2
    desk.go(0.5)
    assert desk.stands() and desk.interrupts <= 2
    driver = Driver(desk.loop.contract, desk.driver.hand, Pad(PadMapping()))  # of a supervisor that does not answer
    driver.stop(10.0)
    assert driver.stop_again(10.0 + STOP_FOR_S - 0.01) and not driver.stop_again(10.0 + STOP_FOR_S)
    driver.stop(20.0)
    driver.rearmed()
    assert not driver.stop_again(20.0)


def test_heartbeat_is_given_while_somebody_is_there() -> None:
    driver = Desk().driver
    assert not driver.beat(10.0, 0.1, attended=False)
    assert driver.beat(10.0, 0.1, attended=True) and not driver.beat(10.05, 0.1, attended=True)
    driver.pad.take([0.0] * 8, [0] * 11, 20.0)
    assert driver.beat(20.0 + 0.9 * JOY_STALE_S, 0.1, attended=False)
    assert not driver.beat(20.0 + 1.1 * JOY_STALE_S + 0.1, 0.1, attended=False)


def test_joint_states_that_are_old_or_were_used_give_no_chunk() -> None:
    desk = Desk()
    loop, driver = desk.loop, desk.driver
    now_s, stamp_ns, joints = loop.now_s + 1.0, round(loop.now_s * 1e9) + 10**9, loop.sample()
    driver.word = Word(now_s, desk.now.instruction_id, "moving", False)
    assert driver.propose(now_s, None, stamp_ns) is None and driver.propose(now_s, joints, stamp_ns) is None
    fresh = joints.__class__(joints.q_rad, joints.qd_rad_s, joints.gripper_width_m, now_s)
    assert driver.propose(now_s, fresh, stamp_ns) is not None
    again = joints.__class__(joints.q_rad, joints.qd_rad_s, joints.gripper_width_m, now_s + 0.2)
    driver.word = Word(now_s + 0.2, desk.now.instruction_id, "moving", False)
    assert driver.propose(now_s + 0.2, again, stamp_ns) is None  # the arm has not been measured since
    with pytest.raises(Invalid):
        driver.propose(math.nan, again, stamp_ns + 1)


def test_button_of_the_stop_needs_no_deadman_and_reaches_the_supervisor() -> None:
    desk = Desk()
    desk.push()
    up, down = [0] * 11, [0] * 11
    down[PadMapping().acts[Act.STOP]] = 1
    desk.driver.pad.take([0.0] * 8, up, desk.loop.now_s)
    assert desk.driver.pad.take([0.0] * 8, down, desk.loop.now_s) == [Act.STOP]
    desk.stick = None
    desk.driver.stop(desk.loop.now_s)
    desk.go(0.6)
    assert desk.now.latched and desk.stands()
