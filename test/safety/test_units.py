"""Faults at level U that have no better place: one pure object, fake time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, panda

from vla_ros.arm.controller import ArmController
from vla_ros.core.clock_watch import ClockWatch
from vla_ros.core.errors import Invalid
from vla_ros.core.limits import MotionState
from vla_ros.core.process_health import RSS_MAX_MB, QosGate, require_memory
from vla_ros.core.types import ArmStatus, Command, CommandMode, JointSample, PerceptionStatus, Severity, Source

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("hash_, taken", [(panda().hash, True), ("0" * 64, False)], ids=["ours", "another"])
def test_A10_perception_of_another_contract_refuses_the_rearm(hash_: str, taken: bool) -> None:
    loop = Loop()
    for _ in range(70):
        loop.tick(perception=PerceptionStatus("", hash_, loop.now_s))
    reply = loop.tick(perception=PerceptionStatus("", hash_, loop.now_s), rearms=("t",)).replies[0]
    assert reply.accepted is taken and (taken or "contract_mismatch" in reply.reason)


@pytest.mark.parametrize("listened", list(Source))
@pytest.mark.parametrize("proposing", list(Source))
def test_D10_exactly_one_source_is_listened_to(listened: Source, proposing: Source) -> None:
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]), policy_on=False)
    loop.arm()
    assert loop.tick(sources=(("s", listened),)).replies[0].accepted
    loop.instruct()
    loop.run(0.05)
    decision = loop.tick(chunks=(loop.make_chunk(source=proposing),))
    assert decision.source is listened
    assert (decision.phase == "moving") is (listened is proposing)
    assert [e.rule for e in decision.events] == ([] if listened is proposing else ["other_source"])
    if listened is proposing:
        loop.run(0.2)
        other = Source(1 - listened)
        decision = loop.tick(sources=(("s", other),), chunks=(loop.make_chunk(source=other),))
        while not decision.replies:  # the arm brakes first; meanwhile nobody is listened to
            assert decision.source is listened and decision.phase == "waiting"
            decision = loop.tick(chunks=(loop.make_chunk(source=other), loop.make_chunk(source=listened)))
            assert len(loop.decisions) < 200
        assert decision.replies[0].accepted and decision.source is other
        assert np.abs(loop.decisions[-2].command.qd_rad_s).max() == 0.0


def test_endpoints_that_do_not_match_are_named() -> None:
    gate = QosGate()
    gate.require()
    gate.note("safe_command", "DEADLINE")
    gate.note("safe_command", "DEADLINE")
    with pytest.raises(Invalid, match=r"safe_command \(DEADLINE\)") as error:
        gate.require()
    assert error.value.reason == "qos_incompatible"


@pytest.mark.parametrize("rss_mb", [RSS_MAX_MB + 0.1, 0.0, -1.0, float("nan"), float("inf")])
def test_a_process_judges_its_own_memory(rss_mb: float) -> None:
    require_memory(RSS_MAX_MB)
    with pytest.raises(Invalid):
        require_memory(rss_mb)


def test_a_perception_that_falls_silent_holds_and_one_that_is_not_understood_too() -> None:
    for status in (
        lambda now_s: PerceptionStatus("", panda().hash, now_s - 0.21),
        lambda now_s: PerceptionStatus("image_upside_down", panda().hash, now_s),
    ):
        loop = Loop()
        for _ in range(70):
            loop.tick(perception=PerceptionStatus("", panda().hash, loop.now_s))
        loop.tick(perception=PerceptionStatus("", panda().hash, loop.now_s), rearms=("t",))
        assert loop.tick(perception=status(loop.now_s)).reason.value == "image_stale"


def test_a_policy_that_keeps_the_arm_where_it_is_for_ten_seconds_waits_for_the_operator() -> None:
    loop = Loop()
    loop.arm()
    loop.instruct()
    assert loop.run(9.8).phase == "moving"
    decision = loop.run(0.6)
    assert decision.reason.value == "no_progress"
    loop.run(2.0)  # not by itself, though chunks keep coming
    assert loop.decisions[-1].reason.value == "no_progress"
    assert loop.tick(rearms=("t",)).replies[0].accepted
    assert loop.run(1.0).phase == "moving"


def test_a_gripper_gets_two_more_tries_in_one_instruction() -> None:
    from vla_ros.core.gripper import RETRIES_MAX, GripperWatch

    watch, now = GripperWatch(panda()), 0.0
    for attempt in range(RETRIES_MAX + 1):
        watch.retry()
        for _ in range(110):
            now += 0.01
            watch.take(now, 0.0, 0.08, np.zeros(7), 1)
        assert watch.failures == attempt + 1
    watch.take(now, 0.0, 0.08, np.zeros(7), 2)
    assert watch.failures == 0


def rearmed_arm(q: np.ndarray, now: float) -> ArmController:
    """An arm controller that holds at `q` and is not latched."""
    zero, arm = np.zeros(7), ArmController(panda())
    command = Command(q, zero, 0.08, CommandMode.HOLD, 0, 1, 5, now)
    arm.update(now, command, JointSample(q, zero, 0.08, now), 0)
    arm.update(now, dataclasses.replace(command, rearm_counter=1, sequence=2), JointSample(q, zero, 0.08, now), 0)
    return arm


def test_the_arm_controller_holds_an_arm_that_is_elsewhere_where_it_is() -> None:
    q, zero, now = panda().poses.ready_rad, np.zeros(7), 1.0
    arm = rearmed_arm(q, now)
    assert not arm.latched
    pushed = q + 0.12
    output = arm.update(now + 0.01, None, JointSample(pushed, zero, 0.08, now + 0.01), 1)
    assert output is not None and output.latched and (output.q_rad == pushed).all()
    output = arm.update(now + 0.02, None, JointSample(q, zero, 0.08, now + 0.02), 0)
    assert output is not None and (output.q_rad == pushed).all()  # once, not again and again


def test_a_stopped_arm_that_somebody_puts_elsewhere_is_held_there_and_not_pulled_back() -> None:
    q, zero, now = panda().poses.ready_rad, np.zeros(7), 1.0
    arm = rearmed_arm(q, now)
    arm.update(now, None, JointSample(q, zero, 0.08, now), 1)
    there, held = q + 0.12, []
    for k in range(1, 30):
        at_s, turning = now + 0.01 * k, zero + (0.3 if k < 10 else 0.0)
        output = arm.update(at_s, None, JointSample(there, turning, 0.08, at_s), 0)
        assert output is not None and output.latched and not output.qd_rad_s.any()
        held.append(output.q_rad)
    assert (held[12] == q).all()  # while it is being moved, and 50 ms more: one odd sample moves no hold
    assert (held[-1] == there).all()


def test_a_number_that_is_not_finite_never_leaves_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    loop.arm()
    loop.instruct()
    loop.run(0.3)
    mover = loop.supervisor._mover
    nowhere = MotionState.at_rest(mover.state.q * np.nan)
    monkeypatch.setattr(mover, "step", lambda now_s, dt_s: setattr(mover, "state", nowhere))
    with pytest.raises(Invalid) as error:  # the loop of the node ends, and the arm controller brakes
        loop.tick()
    assert error.value.reason == "non_finite"


def test_what_was_observed_before_a_hold_is_dropped() -> None:
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]))
    for _ in range(70):
        loop.tick(perception=PerceptionStatus("", panda().hash, loop.now_s))
    loop.tick(perception=PerceptionStatus("", panda().hash, loop.now_s), rearms=("t",))
    loop.instruct()
    good = lambda: PerceptionStatus("", panda().hash, loop.now_s)  # noqa: E731
    while loop.tick(perception=good()).phase != "moving":
        assert len(loop.decisions) < 200
    for _ in range(30):
        loop.tick(perception=good())
    before, loop.policy_on = loop.make_chunk(), False
    loop.chunks.clear()
    blind = PerceptionStatus("image_blind", panda().hash, loop.now_s)
    assert loop.tick(perception=blind).severity is Severity.HOLD
    late = loop.tick(perception=blind, chunks=(before,))
    assert [event.rule for event in late.events] == ["flushed"]


@pytest.mark.parametrize("latched", [True, False], ids=["latched", "silent"])
def test_an_arm_controller_that_stops_or_falls_silent_stops_the_supervisor(latched: bool) -> None:
    loop = Loop()

    def report(stopped: bool = False) -> ArmStatus:
        counter = loop.decisions[-1].command.rearm_counter if loop.decisions else 0
        return ArmStatus(True, stopped, "command_step" if stopped else "", counter, loop.now_s)

    for _ in range(70):
        loop.tick(arm=report())
    assert loop.tick(arm=report(), rearms=("t",)).replies[0].accepted
    for _ in range(30):
        assert loop.tick(arm=report()).severity is Severity.RUN
    last = report(stopped=latched)
    decisions = [loop.tick(arm=last) for _ in range(2 if latched else 55)]
    assert decisions[-1].severity is Severity.STOP
    assert decisions[-1].reason.value == ("arm_latched" if latched else "arm_lost")
    assert decisions[-1].latched


def test_contact_that_nobody_measures_is_said() -> None:
    loop = Loop()
    assert not loop.tick().contact_monitored
    effort = dataclasses.replace(loop.sample(), effort_nm=np.zeros(7), measured_at_s=loop.now_s + 0.01)
    assert loop.tick(joints=effort).contact_monitored


def test_simulated_time_that_is_missing_pauses_or_steps_back_holds() -> None:
    watch = ClockWatch()
    assert not watch.runs(1.0, 0)  # never heard
    assert watch.runs(1.1, 5_000_000_000) and watch.runs(1.2, 5_100_000_000)
    assert watch.runs(1.4, 5_100_000_000) and not watch.runs(1.41, 5_100_000_000)  # paused
    assert watch.runs(1.5, 5_200_000_000)
    assert not watch.runs(1.6, 200_000_000)  # reset
    assert watch.runs(1.7, 300_000_000)
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]))
    loop.arm()
    loop.instruct()
    loop.run(0.5)
    assert loop.tick(clock_runs=False).reason.value == "clock"


def test_the_arm_controller_stops_when_it_alone_loses_the_joint_states() -> None:
    q, zero = panda().poses.ready_rad, np.zeros(7)
    arm, now = ArmController(panda()), 1.0
    seen = JointSample(q, zero, 0.08, now)
    for k in range(80):
        now += 0.01
        arm.update(now, Command(q, zero, 0.08, CommandMode.HOLD, min(k, 1), k + 1, 5, now), seen, 0)
        if k == 1:
            assert not arm.latched
    assert arm.latched and arm.reason == "state_lost"  # though the commands kept coming
