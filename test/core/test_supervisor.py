"""What the supervisor does, told as stories in fake time. Ids in brackets: rows of the fault table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda

from vla_ros.core.decision import EventLog
from vla_ros.core.errors import Invalid
from vla_ros.core.rules import RULES, Clear, FaultMonitor, Reason, is_veto
from vla_ros.core.types import CommandMode, Severity

pytestmark = pytest.mark.unit


def moving(**kwargs) -> Loop:
    """Armed, instructed, and well on its way over the table."""
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]), speed_m_s=0.2, **kwargs)
    loop.arm()
    loop.instruct()
    assert loop.run(1.0).phase == "moving"
    assert loop.decisions[-1].tool_speed_m_s > 0.05
    return loop


def ticks_to_rest(loop: Loop, most: int = 60) -> int:
    for k in range(most):
        if not np.abs(loop.tick().command.qd_rad_s).any():
            return k + 1
    raise AssertionError("the arm did not come to rest")


# -- start, instruction, done ------------------------------------------------------------------------------------


def test_it_starts_stopped_and_commands_nothing_before_the_first_joint_state() -> None:
    loop = Loop(joints_on=False)
    decision = loop.run(0.1)
    assert decision.command is None and decision.severity is Severity.STOP and decision.latched
    loop.joints_on = True
    decision = loop.tick()
    assert decision.command.mode is CommandMode.STOP and (decision.command.q_rad == loop.q).all()


def test_nothing_moves_before_the_first_rearm_and_instructions_are_refused_with_the_way_out() -> None:
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]))
    loop.run(0.2)
    reply = loop.tick(instructs=(("i", "pick up the red cube", 0),)).replies[0]
    assert not reply.accepted and "rearm" in reply.reason
    loop.run(1.0)
    _, q, _ = loop.stream()
    assert (q == q[0]).all()


def test_an_arm_outside_its_soft_limits_gets_no_command_and_cannot_be_rearmed() -> None:
    loop = Loop()
    loop.q = loop.q.copy()
    loop.q[3] = panda().limits.q_hi_rad[3] + 0.02
    assert loop.run(0.7).command is None
    decision = loop.tick(rearms=("t",))
    assert not decision.replies[0].accepted and "soft" in decision.replies[0].reason


def test_a_sentence_moves_the_arm_to_its_goal_and_ends_done_when_the_policy_says_so_and_all_is_still() -> None:
    loop = moving()
    loop.run(2.5)
    assert np.linalg.norm(loop.kinematics.tool_pose(loop.q)[1] - loop.goal_p) < 0.003
    loop.done_probability = 0.95
    assert loop.run(0.3).phase == "moving"
    decision = loop.run(1.5)
    assert decision.phase == "done" and decision.instruction_id == 0 and decision.severity is Severity.RUN
    assert any(d.publish_instruction == (0, "") for d in loop.decisions)
    assert_stream_inside_limits(loop)


def test_done_is_not_believed_when_the_policy_wavers() -> None:
    loop = moving()
    for k in range(12):
        loop.done_probability = 0.95 if k % 2 else 0.5
        assert loop.run(0.2).phase == "moving"


def test_a_queued_instruction_starts_when_the_open_one_is_done() -> None:
    loop = moving()
    assert loop.tick(instructs=(("q", "then put it down", 1),)).replies[0].accepted
    loop.done_probability = 0.95
    while loop.tick().instruction_id != 2:
        assert len(loop.decisions) < 600
    loop.done_probability = 0.0
    assert loop.run(0.5).text == "then put it down" and loop.decisions[-1].phase == "moving"


# -- interruption ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase_ticks", range(0, 26, 5))
def test_an_interrupt_brakes_in_the_same_update_and_stays_stopped(phase_ticks: int) -> None:  # D1
    loop = moving()
    loop.run(0.01 + 0.01 * phase_ticks)
    before = np.abs(loop.decisions[-1].command.qd_rad_s).max()
    decision = loop.tick(dt_s=0.003, interrupts=1)  # out of phase, as the shell calls it
    assert decision.reason is Reason.INTERRUPT and decision.latched and decision.command.mode is CommandMode.STOP
    assert ticks_to_rest(loop) <= 41
    assert before > 0.0
    rest = loop.decisions[-1].command.q_rad
    assert (loop.run(1.0).command.q_rad == rest).all()
    assert_stream_inside_limits(loop)


def test_after_an_interrupt_the_old_instruction_is_closed_and_its_late_chunks_are_dropped() -> None:  # D3
    loop = moving()
    late = loop.make_chunk()
    loop.tick(interrupts=1)
    loop.auto_verdict = False  # the policy goes on with the old text
    rejected = loop.decisions[-1].counters.chunks_rejected
    assert loop.tick(chunks=(late,)).counters.chunks_rejected == rejected + 1
    loop.run(1.0)
    assert loop.tick(rearms=("t",)).replies[0].accepted
    decision = loop.tick(chunks=(dataclasses.replace(late, sequence=10_000),))
    assert decision.instruction_id == 0 and decision.phase == "idle"
    assert not np.abs(loop.run(0.5).command.qd_rad_s).any()


def test_a_grip_is_kept_through_interrupt_stop_and_rearm() -> None:  # D2
    loop = moving(opening=0.0)
    assert loop.decisions[-1].command.gripper_width_m == 0.0
    loop.opening = 1.0
    loop.tick(interrupts=1)
    loop.run(1.0)
    loop.tick(rearms=("t",))
    assert loop.run(0.5).command.gripper_width_m == 0.0


def test_a_flood_of_interrupts_changes_nothing_and_rearm_waits_for_its_end() -> None:  # D5
    loop = moving()
    for _ in range(50):
        decision = loop.tick(dt_s=0.001, interrupts=3)
        assert decision.reason is Reason.INTERRUPT and len(decision.events) <= 3
    loop.run(0.45)
    assert not loop.tick(rearms=("t",)).replies[0].accepted
    loop.run(0.2)
    assert loop.tick(rearms=("t",)).replies[0].accepted


# -- instruction change ------------------------------------------------------------------------------------------


def test_a_new_instruction_brakes_and_goes_on_with_its_first_chunk_without_waiting_for_rest() -> None:  # D7
    loop = moving()
    loop.goal_p = np.array([0.55, 0.3, 0.3])
    loop.instruct("put it down")
    assert loop.decisions[-1].reason is Reason.INSTRUCTION_CHANGED
    speeds = []
    while loop.tick().phase == "waiting":
        speeds.append(np.abs(loop.decisions[-1].command.qd_rad_s).max())
    assert loop.decisions[-1].phase == "moving" and loop.decisions[-1].instruction_id == 2
    assert speeds[-1] > 0.0  # still on the brake when the chunk came
    loop.run(0.5)
    assert_stream_inside_limits(loop)


def test_a_refused_instruction_changes_nothing() -> None:
    loop = moving(auto_verdict=True)
    loop.auto_verdict = False
    loop.tick(instructs=(("x", "fly to the moon", 0),))
    decision = loop.tick(verdicts=((2, False, "unknown verb; known: pick, put"),))
    assert not decision.replies[0].accepted and "known" in decision.replies[0].reason
    assert loop.run(0.5).phase == "moving" and loop.decisions[-1].instruction_id == 1


def test_bad_text_is_refused_at_once_and_the_open_instruction_goes_on() -> None:  # D8
    loop = moving()
    for text in ("", "x" * 300, "a\nb", b"\xff"):
        decision = loop.tick(instructs=(("x", text, 0),))
        assert not decision.replies[0].accepted and decision.publish_instruction is None
    assert loop.run(0.2).phase == "moving"


def test_a_cancel_closes_the_instruction_and_the_arm_comes_to_rest_without_a_fault() -> None:
    loop = moving()
    decision = loop.tick(closes=(1,))
    assert decision.instruction_id == 0 and decision.severity < Severity.HOLD
    ticks_to_rest(loop)
    assert loop.tick().phase == "idle"


def test_a_policy_that_forgot_the_open_instruction_is_told_again() -> None:
    loop = moving()
    assert loop.tick(policy_instruction_id=0).publish_instruction == (1, "pick up the red cube")
    assert loop.tick(policy_instruction_id=0).publish_instruction is None  # at most once a second


# -- chunks that are late, stale or bad --------------------------------------------------------------------------


def whole_chunks(chunk_s: float = 0.9, **kwargs) -> Loop:
    """The policy answers every 0.8 s, where one chunk ends, and the contract lets a chunk be that old."""
    contract = dataclasses.replace(panda(), timeouts=dataclasses.replace(panda().timeouts, chunk_s=chunk_s))
    loop = Loop(contract=contract, goal_p=np.array([0.5, 0.3, 0.25]), policy_period_s=0.8, latency_s=0.06, **kwargs)
    loop.arm()
    loop.instruct()
    while loop.tick().severity >= Severity.HOLD:
        assert len(loop.decisions) < 200
    return loop


def test_chunks_may_be_executed_whole_the_arm_slows_down_where_each_ends_and_goes_on_with_the_next() -> None:
    loop = whole_chunks()
    first = len(loop.decisions)
    loop.run(4.0)
    assert {d.severity for d in loop.decisions[first:]} == {Severity.RUN, Severity.LIMIT}
    ending = [d for d in loop.decisions[first:] if d.reason is Reason.CHUNK_ENDING]
    assert min(d.scale for d in ending) < 0.5
    assert np.linalg.norm(loop.kinematics.tool_pose(loop.q)[1] - loop.goal_p) < 0.005
    assert_stream_inside_limits(loop)


def test_a_last_chunk_is_left_at_rest_on_its_last_row_and_then_held() -> None:  # B5
    loop = whole_chunks(2.0, speed_m_s=0.25)
    last_row = loop.kinematics.tool_pose(loop.contract.poses.ready_rad)[1]
    last_row = last_row + 0.2 * (loop.goal_p - last_row) / np.linalg.norm(loop.goal_p - last_row)  # 0.8 s on
    loop.policy_on = False
    began_s, fastest = loop.now_s, 0.0
    while loop.tick().severity < Severity.HOLD:
        fastest = max(fastest, loop.decisions[-1].tool_speed_m_s)
    assert loop.decisions[-1].reason is Reason.CHUNK_STALE
    assert loop.now_s - began_s < 1.5  # at its end, and not for its age
    assert loop.decisions[-1].tool_speed_m_s < 0.3 * fastest
    ticks_to_rest(loop, 15)
    loop.run(0.1)
    assert np.linalg.norm(loop.kinematics.tool_pose(loop.q)[1] - last_row) < 0.005
    assert_stream_inside_limits(loop)


def test_a_hold_ends_also_where_chunks_come_more_rarely_than_they_last() -> None:
    loop = whole_chunks()
    loop.run(0.3)
    loop.joints_on = False
    loop.run(0.1)
    assert loop.decisions[-1].reason is Reason.STATE_STALE
    loop.joints_on = True
    back = loop.now_s
    while loop.tick().severity >= Severity.HOLD:
        assert loop.now_s - back < 1.6
    assert loop.now_s - back >= 0.5


def test_a_policy_that_falls_silent_ends_in_a_hold_and_resumes_by_itself_when_it_is_back() -> None:  # B5, B6
    loop = moving()
    loop.policy_on = False
    silent_since = loop.now_s
    while loop.tick().severity < Severity.HOLD:
        assert loop.now_s - silent_since < 0.7
    assert loop.decisions[-1].reason is Reason.CHUNK_STALE
    ticks_to_rest(loop)
    loop.policy_on, loop.next_policy_s = True, loop.now_s
    back = loop.now_s
    while loop.tick().severity >= Severity.HOLD:
        assert loop.now_s - back < 1.0
    assert loop.now_s - back >= 0.5  # half a second of health first
    assert loop.run(0.3).phase == "moving"
    assert_stream_inside_limits(loop)


def test_a_chunk_with_a_nan_is_dropped_whole_and_the_third_within_ten_seconds_stops() -> None:  # B1
    loop = moving()
    for k in range(3):
        bad = loop.make_chunk()
        bad.data[7, 3] = np.nan
        decision = loop.tick(chunks=(bad,))
        assert decision.events and decision.events[0].rule == "non_finite"
        assert decision.latched == (k == 2)
        loop.run(0.3)
    assert loop.decisions[-1].reason is Reason.BAD_CHUNKS


def test_a_chunk_for_another_body_stops() -> None:  # B3
    loop = moving()
    decision = loop.tick(chunks=(loop.make_chunk(contract_hash="0" * 64),))
    assert decision.reason is Reason.CONTRACT_MISMATCH and decision.latched


def test_a_unit_mix_up_from_rest_does_not_move_the_arm() -> None:  # B12
    loop = Loop()
    loop.arm()
    loop.policy_on = False
    loop.instruct()
    wrong = loop.make_chunk()
    wrong.data[:, :3] = 0.3 * 57.3
    rest = loop.decisions[-1].command.q_rad
    loop.tick(chunks=(wrong,))
    assert (loop.run(0.5).command.q_rad == rest).all()


def test_an_exception_inside_the_executor_is_caught_and_holds(monkeypatch: pytest.MonkeyPatch) -> None:  # E14
    loop = moving()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(loop.supervisor._executor, "reference", broken)
    decision = loop.tick()
    assert decision.command is not None and decision.events
    assert loop.tick().severity is Severity.HOLD
    ticks_to_rest(loop)
    assert_stream_inside_limits(loop)


# -- joint states, clock -----------------------------------------------------------------------------------------


def test_joint_states_that_stop_hold_after_50_ms_and_stop_after_500_ms() -> None:  # A7
    loop = moving()
    loop.joints_on = False
    last = loop.now_s
    while loop.tick().severity < Severity.HOLD:
        assert loop.now_s - last < 0.1
    assert loop.decisions[-1].reason is Reason.STATE_STALE
    ticks_to_rest(loop)
    while not loop.tick().latched:
        assert loop.now_s - last < 0.6
    assert loop.decisions[-1].reason is Reason.STATE_LOST
    assert_stream_inside_limits(loop)


@pytest.mark.parametrize("bad", ["nan", "short"])
def test_a_joint_state_that_is_not_whole_counts_as_none(bad: str) -> None:  # A8
    loop = moving()
    for _ in range(10):
        sample = loop.sample()
        q = np.full(7, np.nan) if bad == "nan" else sample.q_rad[:6]
        decision = loop.tick(joints=dataclasses.replace(sample, q_rad=q))
        assert np.isfinite(decision.command.q_rad).all()
    assert decision.reason is Reason.STATE_STALE


def test_a_late_tick_is_no_leap_and_a_very_late_one_holds() -> None:  # E10
    loop = moving()
    q = loop.decisions[-1].command.q_rad
    assert np.abs(loop.tick(dt_s=0.08).command.q_rad - q).max() <= 0.02  # two periods at full speed
    assert loop.decisions[-1].counters.late_ticks == 1 and loop.decisions[-1].severity < Severity.HOLD
    loop.tick(dt_s=0.15)
    assert loop.decisions[-1].severity is Severity.HOLD and loop.decisions[-1].reason is Reason.LATE_TICK


def test_a_stop_that_the_arm_has_made_alone_meanwhile_is_not_made_again() -> None:  # invariant 6
    """The loop stands still in the middle of a stop, until the arm controller has braked by itself."""
    loop = moving()
    loop.tick(interrupts=1)
    loop.run(0.05)
    q = loop.decisions[-1].command.q_rad
    assert np.abs(loop.tick(dt_s=0.08).command.q_rad - q).max() <= 0.02  # not over yet: two periods, no leap (E10)
    assert np.abs(loop.decisions[-1].command.qd_rad_s).any()
    command = loop.tick(dt_s=3.0).command
    assert not command.qd_rad_s.any()
    for _ in range(60):
        assert (loop.tick().command.q_rad == command.q_rad).all()
    assert loop.tick(rearms=("t",)).replies[0].accepted
    assert_stream_inside_limits(loop)


@pytest.mark.parametrize("dt", [0.0, -5.0])
def test_a_clock_that_stands_or_goes_back_holds_and_repeats_the_command(dt: float) -> None:  # E9
    loop = moving()
    q = loop.decisions[-1].command.q_rad
    decision = loop.tick(dt_s=dt)
    assert decision.severity is Severity.HOLD and decision.reason is Reason.CLOCK
    assert (decision.command.q_rad == q).all()


def test_an_arm_that_does_not_follow_stops() -> None:  # C5
    loop = moving()
    loop.arm_on = False
    while not loop.tick().latched:
        assert len(loop.decisions) < 400
    assert loop.decisions[-1].reason is Reason.TRACKING


# -- speed and workspace -----------------------------------------------------------------------------------------


def test_the_tool_never_exceeds_its_speed_cap_however_fast_the_chunks_are() -> None:
    cap = panda().speed.tool_m_s
    for speed, goal in ((0.7, [0.6, 0.35, 0.1]), (2.0, [0.35, -0.4, 0.55])):
        loop = Loop(goal_p=np.array(goal), speed_m_s=speed)
        loop.arm()
        loop.instruct()
        loop.run(2.5)
        loop.goal_p = np.array([0.45, -goal[1], 0.4])
        loop.run(2.0)
        fastest = max(d.tool_speed_m_s for d in loop.decisions)
        assert 0.8 * cap < fastest <= cap, fastest
        assert any(d.severity is Severity.LIMIT for d in loop.decisions)
        assert_stream_inside_limits(loop)


@pytest.mark.parametrize(
    "face", [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)], ids=["x-", "x+", "y-", "y+", "z-", "z+"]
)
def test_the_tool_stays_in_the_workspace_box_when_driven_at_a_face(face: tuple[int, int]) -> None:  # C2
    axis, sign = face
    box = panda().workspace
    goal = np.array([0.45, 0.0, 0.35])
    goal[axis] = (box.upper_m if sign > 0 else box.lower_m)[axis] + 0.045 * sign  # clamped, not rejected
    if face == (0, 1):
        goal[axis] = 0.72  # the arm itself ends before this face
    loop = Loop(goal_p=goal, speed_m_s=0.35)
    loop.arm()
    loop.instruct()
    loop.run(2.5)
    p = np.array([loop.kinematics.tool_pose(d.command.q_rad)[1] for d in loop.decisions])
    assert (p >= box.lower_m - 0.005).all() and (p <= box.upper_m + 0.005).all()
    loop.goal_p = np.array([0.45, 0.0, 0.35])
    loop.run(3.0)  # and it comes back
    assert np.linalg.norm(loop.kinematics.tool_pose(loop.q)[1] - loop.goal_p) < 0.02


def test_a_stop_pose_outside_the_box_holds_and_retreat_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = moving()
    tight = dataclasses.replace(panda().workspace, upper_m=loop.kinematics.tool_pose(loop.q)[1] + 0.05)
    monkeypatch.setattr(loop.supervisor._mover._look_ahead, "_box", tight)
    while loop.tick().reason is not Reason.WORKSPACE:
        assert len(loop.decisions) < 400
    ticks_to_rest(loop)
    beyond = (loop.kinematics.tool_pose(loop.decisions[-1].command.q_rad)[1] - tight.upper_m).max()
    assert beyond <= 0.005
    loop.goal_p = tight.upper_m - 0.1
    loop.run(2.0)
    assert loop.decisions[-1].severity < Severity.HOLD


# -- home --------------------------------------------------------------------------------------------------------


def test_home_closes_the_instruction_brakes_and_moves_slowly_to_the_home_pose() -> None:
    loop = moving()
    assert loop.tick(home=("h",)).replies[0].accepted
    assert loop.run(0.1).instruction_id == 0 and loop.decisions[-1].phase == "moving"
    loop.run(6.0)
    assert np.allclose(loop.q, panda().poses.home_rad) and loop.decisions[-1].phase == "idle"
    assert_stream_inside_limits(loop)


def test_an_interrupt_on_the_way_home_stops_and_the_way_is_not_resumed() -> None:
    loop = moving()
    loop.tick(home=("h",))
    loop.run(1.0)
    loop.tick(interrupts=1)
    ticks_to_rest(loop)
    loop.run(0.6)
    loop.tick(rearms=("t",))
    rest = loop.tick().command.q_rad
    assert (loop.run(1.0).command.q_rad == rest).all()


# -- the rules themselves ----------------------------------------------------------------------------------------


def test_a_check_that_did_not_run_is_unhealthy() -> None:
    monitor = FaultMonitor()
    monitor.rearm()
    assert monitor.severity is Severity.RUN
    monitor.tick(0.0, {}, False, False)
    assert monitor.severity is Severity.STOP


@pytest.mark.parametrize("reason", [reason for reason, rule in RULES.items() if rule.flaps])
def test_three_holds_with_one_reason_within_ten_seconds_become_a_stop(reason: Reason) -> None:
    monitor, now = FaultMonitor(), 0.0
    monitor.rearm()
    for k in range(3):
        for bad in (True, False):
            now += 0.6
            monitor.tick(now, {r: bad and r is reason for r in RULES}, True, True)
            assert monitor.is_active(reason) == bad or k == 2
    assert monitor.reason is Reason.FLAPPING and monitor.latched


@pytest.mark.parametrize("reason", list(RULES))
def test_each_condition_clears_by_its_declared_rule_and_by_nothing_less(reason: Reason) -> None:
    monitor = FaultMonitor()
    monitor.rearm()
    healthy = dict.fromkeys(RULES, False)
    monitor.tick(1.0, healthy | {reason: True}, False, True)
    assert monitor.is_active(reason) and monitor.severity is RULES[reason].severity
    rule = RULES[reason].clear
    monitor.tick(1.4, healthy, True, True)  # too early, but with a chunk
    assert monitor.is_active(reason) == (rule is not Clear.NEW_CHUNK)
    monitor.tick(1.6, healthy, False, True)  # long enough, but without a chunk
    assert monitor.is_active(reason) == (rule in (Clear.AUTO, Clear.OPERATOR, Clear.INSTRUCTION, Clear.REARM))
    monitor.tick(1.7, healthy, True, True)
    assert monitor.is_active(reason) == (rule in (Clear.OPERATOR, Clear.INSTRUCTION, Clear.REARM))
    monitor.acknowledge()
    monitor.tick(1.8, healthy, True, True)
    assert monitor.is_active(reason) == (rule is Clear.REARM)
    monitor.rearm()
    assert monitor.severity is Severity.RUN


def test_the_first_reason_of_a_severity_is_the_one_published() -> None:
    monitor = FaultMonitor()
    monitor.rearm()
    healthy = dict.fromkeys(RULES, False)
    monitor.tick(1.0, healthy | {Reason.INTERRUPT: True}, False, False)
    monitor.tick(1.1, healthy | {Reason.STATE_LOST: True}, False, False)
    assert monitor.reason is Reason.INTERRUPT and monitor.counts[Reason.STATE_LOST] == 1


@pytest.mark.parametrize("reason", list(RULES))
def test_each_condition_that_sets_in_is_told_once_whatever_else_does(reason: Reason) -> None:
    monitor, log = FaultMonitor(), EventLog()
    monitor.rearm()
    healthy, both = dict.fromkeys(RULES, False), {Reason.INTERRUPT: True, reason: True}
    told = []
    for k in range(3):
        monitor.tick(0.01 * k, healthy | both, False, True)
        for raised in monitor.raised:
            log.raised(raised)
        told.append({event.rule for event in log.take()})
    assert told == [{"interrupt", reason.value}, set(), set()]
    assert is_veto(reason.value) == (
        RULES[reason].severity is not Severity.LIMIT and reason is not Reason.INSTRUCTION_CHANGED
    )


def test_an_arm_that_is_lost_and_off_its_track_in_the_same_tick_tells_both() -> None:
    """The stop begins from the measured state: who judges the commands has to know."""
    loop = moving()
    loop.supervisor._check_gripper = lambda now_s: loop.supervisor._bad.update(  # the last of the checks
        {Reason.ARM_LOST: True, Reason.TRACKING: True}
    )
    decision = loop.tick()
    assert decision.reason is Reason.ARM_LOST and decision.raised(Reason.TRACKING)
    assert decision.latched and not loop.tick().raised(Reason.TRACKING)


def test_a_writer_id_of_zero_is_refused() -> None:
    from vla_ros.core.kinematics import Kinematics
    from vla_ros.core.supervisor import Supervisor

    with pytest.raises(Invalid):
        Supervisor(panda(), Kinematics(panda()), 0)


def test_a_verdict_that_comes_after_a_stop_opens_nothing() -> None:
    loop = moving()
    loop.auto_verdict = False
    loop.tick(instructs=(("x", "put it down", 0),))
    decision = loop.tick(interrupts=1)
    assert any(not reply.accepted and "interrupt" in reply.reason for reply in decision.replies)
    loop.tick(verdicts=((2, True, ""),))
    loop.run(1.0)
    loop.tick(rearms=("t",))
    assert loop.run(0.3).instruction_id == 0 and loop.decisions[-1].phase == "idle"


def test_a_flood_of_chunks_costs_no_more_than_two_and_the_newest_counts() -> None:  # E11
    loop = moving()
    before = loop.decisions[-1].counters
    chunks = tuple(loop.make_chunk(observed_at_s=loop.now_s - 0.04 + 0.0001 * k) for k in range(100))
    after = loop.tick(chunks=chunks).counters
    assert after.chunks_accepted - before.chunks_accepted <= 3  # and perhaps the stub's own
    assert after.chunks_rejected - before.chunks_rejected >= 98


def test_home_is_refused_while_the_arm_holds_for_a_fault() -> None:
    loop = moving()
    loop.policy_on = False
    loop.run(1.2)
    reply = loop.tick(home=("h",)).replies[0]
    assert not reply.accepted and "chunk_stale" in reply.reason
