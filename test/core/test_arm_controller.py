"""The arm controller checks every command again and stops by itself (faults E1 to E5, B4, D1)."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda

from vla_ros.arm.controller import ArmController, ArmOutput
from vla_ros.core.limits import MotionState, plan_stop
from vla_ros.core.types import Command, CommandMode, JointSample

pytestmark = pytest.mark.unit
LIMITS = panda().limits


class Chain:
    """Supervisor, arm controller and plant in one loop. `link` decides what reaches the arm controller."""

    def __init__(self, **kwargs) -> None:
        self.loop = Loop(arm_on=False, **kwargs)
        self.arm = ArmController(panda())
        self.outputs: list[tuple[float, ArmOutput]] = []

    def tick(self, link=lambda command: command, arm_interrupts: int = 0, dt_s: float | None = None, **inputs):
        decision = self.loop.tick(dt_s, **inputs)
        command = None if decision.command is None else link(decision.command)
        sample = self.loop.sample() if self.loop.joints_on else None
        output = self.arm.update(self.loop.now_s, command, sample, arm_interrupts)
        if output is not None:
            self.outputs.append((self.loop.now_s, output))
            self.loop.pipeline.append((output.q_rad, output.qd_rad_s))
        if len(self.loop.pipeline) > 3:
            self.loop.q, self.loop.qd = self.loop.pipeline.popleft()
        else:
            self.loop.qd = np.zeros(7)
        return decision

    def run(self, seconds: float, **kwargs):
        for _ in range(round(seconds / 0.01)):
            decision = self.tick(**kwargs)
        return decision

    def armed(self) -> Chain:
        self.run(0.7)
        assert self.arm.latched and not self.outputs  # nothing was ever sent before the rearm
        self.tick(rearms=("t",))
        self.run(0.1)
        assert not self.arm.latched
        return self

    def moving(self) -> Chain:
        self.armed()
        self.loop.goal_p, self.loop.speed_m_s = np.array([0.55, 0.3, 0.15]), 0.25
        self.tick(instructs=(("i", "pick up the red cube", 0),))
        self.run(1.1)
        assert np.abs(self.outputs[-1][1].qd_rad_s).max() > 0.1
        return self

    def assert_smooth(self, jerk_factor: float = 1.0) -> None:
        """Between outputs: speed and acceleration inside the limits, whoever made them."""
        t = np.array([t for t, _ in self.outputs])
        q, v = np.array([o.q_rad for _, o in self.outputs]), np.array([o.qd_rad_s for _, o in self.outputs])
        dt = np.diff(t)[:, None]
        assert (np.abs(np.diff(q, axis=0) / dt) <= LIMITS.v_max_rad_s + 1e-6).all()
        assert (np.abs(np.diff(v, axis=0) / dt) <= LIMITS.a_max_rad_s2 * jerk_factor + 1e-6).all()


def silent(_: Command) -> None:
    return None


def test_what_the_supervisor_commands_reaches_the_arm_unchanged() -> None:
    chain = Chain().moving()
    for _ in range(50):
        decision = chain.tick()
        assert (chain.outputs[-1][1].q_rad == decision.command.q_rad).all()
        assert chain.outputs[-1][1].gripper_width_m == decision.command.gripper_width_m


@pytest.mark.parametrize("phase", range(0, 30, 6))
def test_it_brakes_by_itself_when_commands_stop_and_stays_latched_when_they_come_back(phase: int) -> None:  # E1, E2
    chain = Chain().moving()
    chain.run(0.01 + 0.01 * phase)
    last, speed = chain.loop.now_s, np.abs(chain.outputs[-1][1].qd_rad_s).max()
    chain.run(0.08, link=silent)
    assert chain.arm.latched and chain.arm.reason == "command_timeout"
    assert np.abs(chain.outputs[-1][1].qd_rad_s).max() < speed + 0.05
    chain.run(0.45, link=silent)
    at_rest = next(t for t, o in chain.outputs if t > last and not o.qd_rad_s.any())
    assert at_rest - last <= 0.50
    rest = chain.outputs[-1][1].q_rad
    chain.run(0.5)
    assert chain.arm.latched and (chain.outputs[-1][1].q_rad == rest).all()
    chain.assert_smooth()


def test_one_or_two_missing_commands_are_bridged_without_a_latch() -> None:
    chain = Chain().moving()
    for k in range(60):
        chain.tick(link=silent if k % 7 in (0, 1) else lambda command: command)
    assert not chain.arm.latched


@pytest.mark.parametrize("late_s", [0.0, 0.006])
def test_a_command_that_was_late_on_its_way_does_not_make_the_stop_longer(late_s: float) -> None:
    """The brake begins at the acceleration of the commands, whenever the last ones arrived."""
    arm, hold = ArmController(panda()), panda().poses.ready_rad
    joints = JointSample(hold, np.zeros(7), 0.08, 100.0)
    a, dt = 2.0, 0.01
    arm.update(100.0, command_at(hold, 0.0, 100.0, counter=0, sequence=1), joints, 0)
    arm.update(100.01, command_at(hold, 0.0, 100.01, counter=1, sequence=2), joints, 0)
    assert not arm.latched
    for k in range(1, 16):
        at_s = 100.01 + k * dt
        q, v = hold + 0.5 * a * (k * dt) ** 2, a * k * dt
        delay_s = late_s if k == 14 else 0.0  # the next one comes 4 ms after it
        arm.update(at_s + delay_s, command_at(q, v, at_s, counter=1, sequence=2 + k), joints, 0)
    begun_s = at_s
    outputs = [arm.update(begun_s + 0.002 + k * dt, None, joints, int(k == 0)) for k in range(60)]
    still_s = min(k * dt for k, o in enumerate(outputs) if not o.qd_rad_s.any())
    start = MotionState(q, np.full(7, v), np.full(7, a))
    assert still_s <= plan_stop(LIMITS, start).duration_s + dt


def command_at(q: np.ndarray, v: float, at_s: float, counter: int, sequence: int) -> Command:
    return Command(q, np.full(7, v), 0.08, CommandMode.MOVE, counter, sequence, 7, at_s)


@pytest.mark.parametrize("early_s", [0.0002, 0.004, 0.0098])
def test_an_interrupt_between_two_ticks_brakes_both_at_once_and_keeps_the_time_axis(early_s: float) -> None:  # D1
    """An interrupt wakes the loop: an extra update, sooner than a period after the last one, and then the next tick."""
    chain = Chain().moving()
    start = chain.loop.supervisor._mover.state
    plan, passed_s = plan_stop(LIMITS, start), 0.0
    for step_s, interrupts in ((early_s, 1), (0.01 - early_s, 0), (0.01, 0), (0.01, 0)):
        decision = chain.tick(dt_s=step_s, interrupts=interrupts)
        passed_s += step_s
        assert decision.command.mode is CommandMode.STOP
        assert np.allclose(decision.command.q_rad, plan.at(passed_s).q, atol=1e-9)
        output = chain.outputs[-1]
        assert output[0] == chain.loop.now_s and chain.arm.latched  # passed on in the same update
        assert np.allclose(output[1].q_rad, plan.at(passed_s).q, atol=5e-4)
    chain.run(0.4)
    assert_stream_inside_limits(chain.loop)
    assert not chain.outputs[-1][1].qd_rad_s.any()


def test_an_interrupt_stops_the_arm_even_when_the_supervisor_hangs() -> None:  # D1
    chain = Chain().moving()
    chain.tick(link=silent, arm_interrupts=1)
    assert chain.arm.reason == "interrupt"
    before = np.abs(chain.outputs[-1][1].qd_rad_s).max()
    chain.run(0.42, link=silent)
    assert before > 0.0 and not chain.outputs[-1][1].qd_rad_s.any()
    chain.assert_smooth()


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c: {"q_rad": np.where(np.arange(7) == 3, np.nan, c.q_rad)}, "non_finite"),
        (lambda c: {"qd_rad_s": np.full(7, np.inf)}, "non_finite"),
        (lambda c: {"q_rad": c.q_rad[:6], "qd_rad_s": c.qd_rad_s[:6]}, "shape"),
        (lambda c: {"gripper_width_m": float("nan")}, "non_finite"),
        (lambda c: {"gripper_width_m": 80.0}, "command_range"),
        (lambda c: {"q_rad": c.q_rad + 0.1}, "command_step"),
        (lambda c: {"q_rad": np.full(7, 3.5)}, "command_range"),
        (lambda c: {"mode": 7}, "mode"),
        (lambda c: {"mode": CommandMode.STOP}, "supervisor_stop"),
    ],
)
def test_a_bad_command_is_never_passed_on_and_latches_a_stop(change, reason: str) -> None:
    chain = Chain().moving()
    chain.tick(link=lambda c: dataclasses.replace(c, **change(c)))
    assert chain.arm.latched and chain.arm.reason == reason
    chain.run(0.5)
    assert all(np.isfinite(o.q_rad).all() and np.isfinite(o.gripper_width_m) for _, o in chain.outputs)
    assert not chain.outputs[-1][1].qd_rad_s.any()
    chain.assert_smooth()


def test_repeated_and_reordered_commands_are_ignored() -> None:
    chain = Chain().moving()
    old: list[Command] = []

    def repeat(command: Command) -> Command:
        old.append(command)
        return old[max(0, len(old) - 3)] if len(old) % 4 == 0 else command

    chain.run(0.6, link=repeat)
    assert not chain.arm.latched and chain.arm.ignored >= 10
    chain.assert_smooth()


def test_a_second_writer_is_ignored_while_the_first_is_alive() -> None:  # E5
    chain = Chain().moving()
    for _ in range(20):
        decision = chain.tick()
        rogue = dataclasses.replace(
            decision.command, writer_id=999, q_rad=decision.command.q_rad + 0.01, sequence=10**6
        )
        assert chain.arm.update(chain.loop.now_s, rogue, chain.loop.sample(), 0) is None
    assert not chain.arm.latched and chain.arm.ignored >= 20


def test_a_restarted_supervisor_moves_nothing_before_a_rearm_of_its_own() -> None:  # E4
    chain = Chain().moving()
    chain.run(1.0, link=silent)
    running = lambda c: dataclasses.replace(c, writer_id=77, rearm_counter=5, mode=CommandMode.MOVE)  # noqa: E731
    rest = chain.outputs[-1][1].q_rad
    chain.run(0.3, link=running)  # says that it is armed, but was never rearmed with this arm controller
    assert chain.arm.latched and (chain.outputs[-1][1].q_rad == rest).all()
    chain.tick(link=lambda c: dataclasses.replace(
        c, writer_id=77, rearm_counter=6, mode=CommandMode.HOLD, q_rad=rest, qd_rad_s=np.zeros(7)
    ))  # fmt: skip
    assert not chain.arm.latched


def test_a_new_writer_that_comes_before_the_silence_of_the_old_one_was_noticed_is_not_followed() -> None:  # E4
    chain = Chain().moving()
    last = chain.tick().command
    now_s = chain.loop.now_s + 0.07  # the own loop was late as well
    step = last.q_rad + 0.002
    taken = dataclasses.replace(last, writer_id=77, sequence=1, q_rad=step, at_s=now_s)
    output = chain.arm.update(now_s, taken, dataclasses.replace(chain.loop.sample(), measured_at_s=now_s), 0)
    assert output is not None and output.latched and output.reason == "new_writer"


def test_it_stands_where_the_supervisor_takes_its_stop_to_have_ended_after_three_seconds_of_silence() -> None:  # E1, E2
    chain = Chain().moving()
    chain.tick(closes=(1,))  # the supervisor brakes: no fault, so the arm controller follows it down
    chain.run(0.05)
    assert not chain.arm.latched and chain.outputs[-1][1].qd_rad_s.any()
    sample = chain.loop.sample()
    for k in range(1, 300):
        now_s = chain.loop.now_s + 0.01 * k
        output = chain.arm.update(now_s, None, dataclasses.replace(sample, measured_at_s=now_s), 0)
    assert output is not None and output.reason == "command_timeout" and not output.qd_rad_s.any()
    chain.loop.q, chain.loop.pipeline = output.q_rad, deque([(output.q_rad, output.qd_rad_s)] * 3)
    command = chain.tick(dt_s=3.0).command
    assert not command.qd_rad_s.any()
    assert np.abs(command.q_rad - output.q_rad).max() < 1e-3  # a rearm allows 0.02 rad


def test_it_leaves_the_stop_only_for_a_higher_counter_and_a_command_near_its_hold_position() -> None:
    chain = Chain().moving()
    chain.tick(interrupts=1, arm_interrupts=1)
    chain.run(1.0)
    assert chain.arm.latched  # the same counter, however long
    chain.tick(rearms=("t",), link=lambda c: dataclasses.replace(c, q_rad=c.q_rad + 0.03))
    assert chain.arm.latched and chain.arm.reason == "rearm_mismatch"
    chain.tick()
    assert not chain.arm.latched


def test_a_small_distance_to_the_first_command_is_closed_without_a_step() -> None:
    chain = Chain().moving()
    chain.tick(interrupts=1, arm_interrupts=1)
    chain.run(1.0)
    n = len(chain.outputs)
    shifted = lambda c: dataclasses.replace(c, q_rad=c.q_rad + 0.015)  # noqa: E731
    chain.tick(rearms=("t",), link=shifted)
    decision = chain.run(0.6, link=shifted)
    q = np.array([o.q_rad for _, o in chain.outputs[n - 1 :]])
    assert not chain.arm.latched and np.abs(np.diff(q, axis=0)).max() < 0.004
    assert np.allclose(q[-1], decision.command.q_rad + 0.015)


def test_the_grip_is_kept_through_its_own_stop() -> None:
    chain = Chain(opening=0.0).moving()
    assert chain.outputs[-1][1].gripper_width_m == 0.0
    chain.run(0.5, link=silent)
    chain.run(0.3, link=lambda c: dataclasses.replace(c, gripper_width_m=0.08))
    assert chain.outputs[-1][1].gripper_width_m == 0.0


def test_it_stops_when_joint_states_are_lost() -> None:  # A7
    chain = Chain().moving()
    chain.loop.joints_on = False
    chain.run(0.6)
    assert chain.arm.latched


def test_a_latched_stop_of_the_arm_is_reported_for_the_supervisor() -> None:
    chain = Chain().moving()
    chain.run(0.2, link=silent)
    status = chain.arm.status(chain.loop.now_s)
    assert status.latched and status.reason == "command_timeout"
