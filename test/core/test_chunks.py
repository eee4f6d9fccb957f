"""Chunks on the time axis: accepted whole or not at all, late rows skipped, seams without a step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda, panda_kinematics
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ros.core.chunks import ROWS_A_TICK, ChunkExecutor
from vla_ros.core.curve import smooth_rows
from vla_ros.core.errors import Invalid
from vla_ros.core.limits import LOOK_AHEAD_S
from vla_ros.core.rules import Reason
from vla_ros.core.types import ActionSpace, Chunk

pytestmark = pytest.mark.unit
READY = panda().poses.ready_rad
NOW = 100.0
DELAY = panda().arm.actuation_delay_s


def chunk(**changes) -> Chunk:
    """Moves the tool 4 mm per row along x, gripper open."""
    data = np.zeros((16, 7))
    data[:, 0] = 0.004 * np.arange(1, 17)
    data[:, 6] = 1.0
    values = {
        "observed_at_s": NOW, "writer_id": 22, "instruction_id": 5, "sequence": 1, "contract_hash": panda().hash,
        "space": ActionSpace.TOOL_DELTA, "dt_s": 0.05, "data": data,
    }  # fmt: skip
    return Chunk(**(values | changes))


def executor() -> ChunkExecutor:
    return ChunkExecutor(panda(), panda_kinematics())


def accept(target: ChunkExecutor, item: Chunk, now: float = NOW + 0.05, q: np.ndarray = READY) -> None:
    fade_from = (now, *target.reference(now)) if target.active else (now, q, np.zeros(7))
    target.accept(now, item, 5, q, q, fade_from)
    target.extend(now, len(item.data))  # what the next ticks do


def refusal(item: Chunk, now: float = NOW + 0.05, target: ChunkExecutor | None = None) -> str:
    target = target or executor()
    was_active = target.active
    with pytest.raises(Invalid) as error:
        accept(target, item, now)
    assert target.active == was_active  # nothing of it was taken
    return error.value.reason


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, 15), col=st.integers(0, 6), bad=st.sampled_from([np.nan, np.inf, -np.inf]), more=st.booleans()
)
def test_one_number_that_is_not_finite_anywhere_rejects_the_whole_chunk(
    row: int, col: int, bad: float, more: bool
) -> None:
    data = chunk().data.copy()
    data[row, col] = bad
    if more:
        data[:, 0] *= 1e9  # other faults must not hide it
    assert refusal(chunk(data=data)) == "non_finite"


@pytest.mark.parametrize("field", ["observed_at_s", "dt_s", "inference_s", "confidence", "done_probability"])
def test_every_other_number_of_a_chunk_must_be_finite_too(field: str) -> None:
    assert refusal(chunk(**{field: float("nan")})) == "non_finite"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"data": np.zeros((16, 8))}, "shape"),
        ({"data": np.zeros((0, 7))}, "shape"),
        ({"data": np.zeros((65, 7))}, "shape"),
        ({"data": np.zeros(7)}, "shape"),
        ({"dt_s": 0.1}, "action_mismatch"),
        ({"dt_s": 5.0}, "dt"),
        ({"space": 9}, "space"),
        ({"space": ActionSpace.JOINT_POSITION, "data": np.zeros((16, 8))}, "action_mismatch"),
        ({"contract_hash": "0" * 64}, "contract_mismatch"),
        ({"instruction_id": 4}, "instruction_closed"),
        ({"writer_id": 0}, "writer_id"),
        ({"sequence": 0}, "sequence"),
        ({"observed_at_s": NOW - 0.5}, "chunk_late"),
        ({"observed_at_s": NOW + 1.0}, "chunk_time"),
        ({"confidence": 1.5}, "range"),
        ({"committed_rows": 17}, "invalid"),
    ],
)
def test_a_chunk_that_is_not_what_the_contract_says_is_rejected_with_a_reason(changes: dict, reason: str) -> None:
    assert refusal(chunk(**changes)) == reason


@pytest.mark.parametrize("factor, reasons", [(57.3, {"workspace", "unreachable"}), (1000.0, {"workspace"})])
def test_a_unit_mix_up_is_rejected_and_never_crept_towards(factor: float, reasons: set) -> None:
    data = chunk().data.copy()
    data[:, :3] *= factor
    assert refusal(chunk(data=data)) in reasons


def test_a_first_target_far_from_the_command_is_a_start_mismatch() -> None:
    target = executor()
    with pytest.raises(Invalid) as error:
        target.accept(NOW, chunk(), 5, READY, READY + 0.5, (NOW, READY, np.zeros(7)))
    assert error.value.reason == "start_mismatch"


def test_rows_a_little_outside_the_workspace_are_clamped_to_it_and_rows_far_outside_reject_the_chunk() -> None:
    kinematics, box = panda_kinematics(), panda().workspace
    down = chunk().data.copy()
    to_floor = box.lower_m[2] - kinematics.tool_pose(READY)[1][2]
    down[:, 0], down[:, 2] = 0.0, np.linspace(0.0, to_floor - 0.03, 16)
    target = executor()
    accept(target, chunk(data=down))
    assert target.clamped_rows >= 1
    lowest = min(kinematics.tool_pose(target.reference(t)[0])[1][2] for t in np.arange(NOW, NOW + 0.9, 0.01))
    assert lowest >= box.lower_m[2] - 0.003
    down[:, 2] = np.linspace(0.0, to_floor - 0.06, 16)
    assert refusal(chunk(data=down)) == "workspace"


def test_order_is_kept_repeats_replays_and_older_observations_are_dropped() -> None:
    target = executor()
    accept(target, chunk(sequence=3, observed_at_s=NOW))
    assert refusal(chunk(sequence=3, observed_at_s=NOW + 0.01), target=target) == "chunk_order"
    assert refusal(chunk(sequence=2, observed_at_s=NOW + 0.01), target=target) == "chunk_order"
    assert refusal(chunk(sequence=4, observed_at_s=NOW), target=target) == "chunk_order"
    accept(target, chunk(sequence=4, observed_at_s=NOW + 0.01))


def test_a_second_writer_is_ignored_while_the_first_is_alive_and_adopted_when_it_is_silent() -> None:
    target = executor()
    accept(target, chunk())
    other = chunk(writer_id=99, observed_at_s=NOW + 0.1)
    assert refusal(other, now=NOW + 0.15, target=target) == "second_writer"
    later = dataclasses.replace(other, observed_at_s=NOW + 0.7)
    accept(target, later, now=NOW + 0.75)


def test_nothing_observed_before_a_flush_is_taken_after_it() -> None:
    target = executor()
    target.flush(NOW + 0.02)
    assert not target.active and refusal(chunk(observed_at_s=NOW + 0.02), target=target) == "flushed"
    accept(target, chunk(observed_at_s=NOW + 0.03))


def test_each_row_is_due_at_its_own_time_less_the_delay_of_the_arm() -> None:
    target, kinematics = executor(), panda_kinematics()
    accept(target, chunk(), now=NOW + 0.02)
    x0 = kinematics.tool_pose(READY)[1][0]
    for k in (11, 13, 14):  # after the fade
        due = NOW + (k + 1) * 0.05 - DELAY
        assert kinematics.tool_pose(target.reference(due)[0])[1][0] == pytest.approx(x0 + 0.004 * (k + 1), abs=3e-4)


def test_rows_that_fell_due_during_inference_are_skipped_not_played_late() -> None:
    early, late, kinematics = executor(), executor(), panda_kinematics()
    accept(early, chunk(), now=NOW + 0.02)
    accept(late, chunk(), now=NOW + 0.25)
    t = NOW + 0.76
    assert np.allclose(kinematics.tool_pose(early.reference(t)[0])[1], kinematics.tool_pose(late.reference(t)[0])[1])


@pytest.mark.parametrize("age_s", [0.0, 0.07, 0.35])
@pytest.mark.parametrize("rows", [0, ROWS_A_TICK])  # 0: only what is about to be read
def test_what_is_read_of_a_chunk_converted_bit_by_bit_is_what_is_read_of_one_converted_at_once(
    age_s: float, rows: int
) -> None:
    rng = np.random.default_rng(0)
    data = chunk().data + rng.normal(0.0, 0.002, (16, 7)) * ([1.0] * 6 + [0.0])
    whole, bits, now = executor(), executor(), NOW + age_s
    accept(whole, chunk(data=data), now=now)
    bits.accept(now, chunk(data=data), 5, READY, READY, (now, READY, np.zeros(7)))
    while now < NOW + 0.8:
        for t in (now, now + LOOK_AHEAD_S):
            assert np.isclose(bits.left_s(t), whole.left_s(t), rtol=0.0, atol=1e-9)
            for one, other in zip(bits.reference(t), whole.reference(t), strict=True):
                assert np.allclose(one, other, rtol=0.0, atol=1e-9)
        now += rng.choice([0.0005, 0.01, 0.01, 0.01, 0.12])  # late ticks as well
        slower = rng.choice([0.0, 0.01])
        whole.slow_down(slower, 0.5)
        bits.slow_down(slower, 0.5)
        bits.extend(now, rows)


def out_of_reach() -> np.ndarray:
    """Inside the box to a corner of it that the arm cannot reach: rows from the tenth or so on are missed."""
    data = chunk().data.copy()
    p = panda_kinematics().tool_pose(READY)[1]
    data[:, :3] = np.linspace(0.0, 1.0, 17)[1:, None] * (np.array([0.79, 0.49, 0.69]) - p)
    return data


def test_a_chunk_ends_before_the_row_that_cannot_be_reached_and_one_that_begins_so_is_rejected() -> None:
    target = executor()
    target.accept(NOW + 0.05, chunk(data=out_of_reach()), 5, READY, READY, (NOW + 0.05, READY, np.zeros(7)))
    with pytest.raises(Invalid) as error:
        for k in range(6):
            target.extend(NOW + 0.06 + 0.01 * k)
    assert error.value.reason == "unreachable"
    target.extend(NOW + 0.2)  # nothing is left: nothing is raised again
    end_s = NOW + 0.8 - DELAY
    assert target.left_s(end_s - 0.1) == 0.0 < target.left_s(NOW + 0.05 + LOOK_AHEAD_S)
    limits, last = panda().limits, target.reference(end_s)[0]
    assert (last >= limits.q_lo_rad).all() and (last <= limits.q_hi_rad).all()
    late = executor()
    assert refusal(chunk(data=out_of_reach()), now=NOW + 0.35, target=late) == "unreachable"


def test_a_chunk_that_is_cut_is_counted_once_and_said_and_the_arm_holds_at_its_end() -> None:
    loop = Loop(policy_on=False)
    loop.arm()
    loop.instruct()
    loop.tick()
    loop.tick(chunks=(loop.make_chunk(data=out_of_reach()),))
    loop.run(1.0)
    assert loop.decisions[-1].counters.chunks_accepted == loop.decisions[-1].counters.chunks_cut == 1
    assert [e.rule for d in loop.decisions for e in d.events].count("unreachable") == 1
    assert loop.decisions[-1].reason is Reason.CHUNK_STALE and not loop.decisions[-1].command.qd_rad_s.any()
    assert_stream_inside_limits(loop)


def test_the_reference_has_no_step_in_position_or_speed_at_a_seam() -> None:
    target = executor()
    accept(target, chunk())
    for k in range(2):  # the second seam lies inside the first fade
        now = NOW + 0.3 + 0.05 * k
        before = target.reference(now)
        other = chunk(sequence=2 + k, observed_at_s=now - 0.05, data=chunk().data * [[-1, 1, 1, 1, 1, 1, 1]])
        accept(target, other, now=now, q=before[0])
        after = target.reference(now + 1e-9)
        assert np.allclose(before[0], after[0], atol=1e-7) and np.allclose(before[1], after[1], atol=1e-5)


def test_the_speed_of_the_reference_is_the_derivative_of_its_position() -> None:
    target = executor()
    accept(target, chunk())
    for t in np.arange(NOW + 0.06, NOW + 0.7, 0.013):
        (q0, v0), (q1, v1) = target.reference(t), target.reference(t + 1e-5)
        assert np.allclose((q1 - q0) / 1e-5, 0.5 * (v0 + v1), atol=1e-4)


def test_slowing_down_keeps_the_path_and_puts_every_row_later() -> None:
    full, slow = executor(), executor()
    accept(full, chunk())
    accept(slow, chunk())
    for _ in range(20):
        slow.slow_down(0.01, 0.5)
    assert np.allclose(slow.reference(NOW + 0.6)[0], full.reference(NOW + 0.5)[0])
    assert full.left_s(NOW + 0.79) == 0.0 and np.isclose(slow.left_s(NOW + 0.79), 0.1 + 0.8 - DELAY - 0.79)


def test_the_grip_follows_its_own_row_time_with_hysteresis_and_is_never_blended() -> None:
    data = chunk().data.copy()
    data[:, 6] = [1.0] * 5 + [0.5] * 3 + [0.0] * 4 + [0.5] * 4
    target = executor()
    accept(target, chunk(data=data), now=NOW + 0.02)
    seen = {k: target.gripper_open(NOW + (k + 1) * 0.05 - DELAY + 0.001) for k in range(16)}
    # A grip begins together with the motion towards its row, so row 8 acts as soon as row 7 is reached.
    assert [seen[k] for k in range(7)] == [True] * 7 and [seen[k] for k in range(7, 16)] == [False] * 9


def test_smoothing_keeps_straight_rows_and_both_ends_and_calms_noise() -> None:
    line = np.linspace(0.0, 1.0, 17)[:, None] * np.ones(7)
    assert np.allclose(smooth_rows(line), line)
    noise = np.random.default_rng(0).normal(0.0, 1e-3, (17, 7))
    calm = smooth_rows(line + noise) - line
    assert np.allclose(calm[[0, -1]], noise[[0, -1]]) and calm[2:-2].std() < 0.6e-3


def test_the_whole_loop_follows_a_straight_line_within_a_centimetre() -> None:
    loop = Loop(goal_p=np.array([0.5, 0.2, 0.15]), speed_m_s=0.15)
    loop.arm()
    start = loop.kinematics.tool_pose(loop.q)[1]
    loop.instruct()
    loop.run(4.0)
    way = (loop.goal_p - start) / np.linalg.norm(loop.goal_p - start)
    p = np.array([loop.kinematics.tool_pose(d.command.q_rad)[1] for d in loop.decisions[::5]]) - start
    beside = p - np.outer(p @ way, way)
    assert np.linalg.norm(beside, axis=1).max() < 0.01
    assert np.linalg.norm(p[-1] - (loop.goal_p - start)) < 0.003
