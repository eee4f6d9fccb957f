"""Real-time chunking without a model: what of the running chunk the next one has to begin with."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import ActionSpace, Chunk, Severity
from vla_ros.policy.committed import Committed, DelayEstimate, TimedChunk
from vla_ros.policy.ensemble import Ensemble

pytestmark = pytest.mark.unit
STAMP_NS = 1_000_000_000_000
DT_S, ROWS = 0.05, 16
SPEED_M_S = np.array([0.10, -0.04, 0.06])


def straight(seconds=0.0, rows=ROWS):
    """(rows, 7): the tool moves and turns steadily, seen from where it is after `seconds`; the hand closes in row 8."""
    due_s = DT_S * (1 + np.arange(rows))
    data = np.zeros((rows, 7))
    data[:, :3] = due_s[:, None] * SPEED_M_S
    data[:, 5] = 0.3 * due_s
    data[:, 6] = np.where(due_s + seconds < DT_S * 8.99, 1.0, 0.0)
    return data


@pytest.fixture(scope="module")
def kinematics(contract):
    return Kinematics(contract)


@pytest.fixture(scope="module")
def q_after(contract, kinematics):
    """Joint position of an arm that has followed `straight` for some seconds."""
    R0, p0 = kinematics.tool_pose(contract.poses.ready_rad)

    def q(seconds):
        turn = np.array([[np.cos(0.3 * seconds), -np.sin(0.3 * seconds), 0.0],
                         [np.sin(0.3 * seconds), np.cos(0.3 * seconds), 0.0], [0.0, 0.0, 1.0]])  # fmt: skip
        found, ok = kinematics.inverse(turn @ R0, p0 + SPEED_M_S * seconds, contract.poses.ready_rad)
        assert ok
        return found

    return q


@pytest.fixture
def committed(contract, q_after):
    """One that has sent `straight` under instruction 3, moves, and knows a delay of 60 ms: five rows, with the 30 ms of
    the arm and the 120 ms that the limiter looks ahead."""
    memory = Committed(contract, prefix_max=6)
    memory.watch(Severity.RUN, "moving")
    memory.sent(straight(), STAMP_NS, q_after(0.0), 3)
    memory.delay.add(0.060)
    return memory


def later(seconds):
    return STAMP_NS + round(seconds * 1e9)


@pytest.mark.parametrize("seconds", [0.05, 0.1333, 0.4], ids=["on a row", "between rows", "past the grip"])
def test_prefix_is_the_rest_of_the_motion_seen_from_the_new_pose(committed, q_after, seconds):
    prefix = committed.prefix(later(seconds), q_after(seconds), 3)
    assert prefix.shape == (5, 7)
    np.testing.assert_allclose(prefix, straight(seconds)[:5], atol=3e-4)


@pytest.mark.parametrize(
    ("period_s", "lengths"),
    [(0.05, [6, 5, 5, 6, 5, 5]), (0.1333, [5] * 6), (0.2, [5] * 6)],
    ids=["every row", "usual rate", "slower"],
)
def test_what_a_chunk_says_first_is_kept_however_often_it_is_asked(contract, q_after, period_s, lengths):
    """Asked at every row, a policy that is given five rows of "closed" decided one row each time, and never let go."""
    memory = Committed(contract, prefix_max=8)
    memory.watch(Severity.RUN, "moving")
    memory.delay.add(0.060)
    found = []
    for k in range(7):
        found.append(len(memory.prefix(later(k * period_s), q_after(k * period_s), 3)))
        memory.sent(straight(k * period_s), later(k * period_s), q_after(k * period_s), 3)
    assert found == [0, *lengths]


def test_nothing_is_kept_over_a_hold(contract, q_after):
    memory = Committed(contract, prefix_max=8)
    memory.watch(Severity.RUN, "moving")
    memory.delay.add(0.060)
    memory.prefix(later(0.0), q_after(0.0), 3)
    memory.sent(straight(), later(0.0), q_after(0.0), 3)
    memory.watch(Severity.HOLD, "moving")
    memory.watch(Severity.RUN, "moving")
    assert not len(memory.prefix(later(0.05), q_after(0.05), 3))
    memory.sent(straight(0.05), later(0.05), q_after(0.05), 3)
    assert len(memory.prefix(later(0.1), q_after(0.1), 3)) == 6  # as after the first one


@pytest.mark.parametrize(("delay_s", "rows"), [(0.0, 3), (0.060, 5), (0.110, 6), (0.260, 6), (0.9, 6)])
def test_prefix_is_as_long_as_the_delay_and_never_longer_than_what_was_trained(contract, q_after, delay_s, rows):
    memory = Committed(contract, prefix_max=6)
    memory.watch(Severity.RUN, "moving")
    memory.sent(straight(), STAMP_NS, q_after(0.0), 3)
    memory.delay.add(delay_s)
    assert len(memory.prefix(later(0.1), q_after(0.1), 3)) == rows


def test_prefix_ends_where_the_running_chunk_ends(committed, q_after):
    committed.delay.add(0.260)
    assert len(committed.prefix(later(0.7), q_after(0.7), 3)) == 2  # 16 rows are 0.8 s
    assert len(committed.overlap(later(0.1), q_after(0.1), 3)) == 14


def test_nothing_is_committed_for_another_instruction(committed, q_after):
    assert len(committed.prefix(later(0.1), q_after(0.1), 4)) == 0
    committed.clear()
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 0


@pytest.mark.parametrize(
    ("severity", "phase"),
    [(Severity.STOP, "stopped"), (Severity.HOLD, "holding"), (Severity.HOLD, "waiting"), (Severity.RUN, "done")],
)
def test_stop_or_hold_empties_the_prefix_until_another_chunk_was_sent_and_the_arm_moves(
    committed, q_after, severity, phase
):
    committed.watch(severity, phase)
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 0
    committed.watch(Severity.RUN, "moving")
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 0, "the supervisor has forgotten that chunk"
    committed.sent(straight(), STAMP_NS, q_after(0.0), 3)
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 5


def test_limit_is_no_stop(committed, q_after):
    committed.watch(Severity.LIMIT, "moving")
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 5


def test_arm_that_is_not_where_its_chunk_says_commits_to_nothing(committed, contract, q_after):
    assert len(committed.prefix(later(0.5), q_after(0.5), 3)) == 5
    assert len(committed.prefix(later(0.5), contract.poses.ready_rad, 3)) == 0  # it was held back: 6 cm off
    turned = q_after(0.5).copy()
    turned[-1] += 0.3
    assert len(committed.prefix(later(0.5), turned, 3)) == 0


def test_an_old_or_repeated_stamp_commits_to_nothing(committed, q_after):
    for seconds in (0.0, -0.1, 0.9):
        assert len(committed.prefix(later(seconds), q_after(max(seconds, 0.0)), 3)) == 0


def test_chunk_with_nan_is_not_committed_to(committed, q_after):
    bad = straight()
    bad[3, 1] = np.nan
    committed.sent(bad, STAMP_NS, q_after(0.0), 3)
    assert len(committed.prefix(later(0.1), q_after(0.1), 3)) == 0


def test_policy_that_was_trained_without_a_prefix_gets_none(contract, q_after):
    memory = Committed(contract, prefix_max=0)
    memory.watch(Severity.RUN, "moving")
    memory.sent(straight(), STAMP_NS, q_after(0.0), 3)
    memory.delay.add(0.1)
    assert memory.prefix(later(0.1), q_after(0.1), 3).shape == (0, 7)


def test_delay_is_a_high_quantile_of_the_newest_ones():
    delay = DelayEstimate()
    assert delay.value_s is None
    for value in (*[0.9] * 30, *[0.050] * 19, 0.080):
        delay.add(value)
    assert delay.value_s == 0.050  # one of twenty is an outlier, three are not
    delay.add(0.080)
    delay.add(0.080)
    assert delay.value_s == 0.080
    delay.add(-1.0)
    delay.add(float("nan"))
    delay.add(3600.0)
    assert delay.value_s == 0.080


def test_chunk_that_keeps_its_prefix_joins_without_a_step(contract, kinematics, committed, q_after):
    """The same executor joins a chunk with a prefix and one that sets off anew; only the second one jumps."""

    def jump(data, committed_rows):
        executor = ChunkExecutor(contract, kinematics)

        def chunk(sequence, observed_at_s, rows, count=0):
            return Chunk(observed_at_s, 7, 3, sequence, contract.hash, ActionSpace.TOOL_DELTA, DT_S, rows, count)

        q0 = q_after(0.0)
        executor.accept(10.06, chunk(1, 10.0, straight()), 3, q0, q0, (10.06, q0, np.zeros(7)))
        t = 10.26
        executor.accept(t, chunk(2, 10.2, data, committed_rows), 3, q_after(0.2), executor.reference(t)[0],
                        (t, *executor.reference(t)))  # fmt: skip
        return executor.seam[0]

    prefix = committed.prefix(later(0.2), q_after(0.2), 3)
    kept = np.zeros((ROWS, 7))
    kept[:] = straight(0.2)
    kept[: len(prefix)] = prefix
    anew = kept.copy()
    anew[:, :3] += 0.02
    assert jump(anew, 0) > 3 * jump(kept, len(prefix))
    assert jump(kept, 0) == jump(kept, len(prefix)), "committed rows change nothing in how a chunk is joined"


def test_row_of_a_timed_chunk_takes_the_grip_of_the_row_being_moved_to(contract, kinematics, q_after):
    chunk = TimedChunk.of(straight(), STAMP_NS, DT_S, kinematics.tool_pose(q_after(0.0)))
    pose = kinematics.tool_pose(q_after(0.0))
    assert [chunk.row(later(t), pose)[6] for t in (0.0, 0.40, 0.41, 0.45, 0.8, 2.0)] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["ensemble", "adaptive"])
def test_ensemble_of_agreeing_chunks_is_the_newest_and_of_contrary_ones_lies_between(contract, q_after, kind):
    same = Ensemble(contract, kind)
    for k in range(3):
        data = same.mean(straight(0.1 * k), later(0.1 * k), q_after(0.1 * k))
        np.testing.assert_allclose(data, straight(0.1 * k), atol=5e-4)
    contrary = Ensemble(contract, kind)
    left, right = straight(), straight()
    left[:, 1] += 0.05
    right[:, 1] -= 0.05
    right[:, 6] = 0.0
    contrary.mean(left, later(0.0), q_after(0.0))
    q = q_after(0.0)
    data = contrary.mean(right, later(0.05), q)
    assert (data[:15, 1] > right[:15, 1] + 0.01).all() and (data[:15, 1] < left[:15, 1]).all()
    assert np.array_equal(data[:, 6], right[:, 6]), "the grip is never averaged"
    np.testing.assert_allclose(data[15], right[15], atol=1e-9)  # nobody else speaks about the last row
    contrary.clear()
    np.testing.assert_allclose(contrary.mean(right, later(0.1), q), right, atol=1e-9)


def test_adaptive_ensemble_listens_less_to_a_chunk_that_went_the_other_way(contract, q_after):
    q, there, back = q_after(0.0), straight(), straight()
    back[:, :6] *= -1.0
    shares = []
    for kind in ("ensemble", "adaptive"):
        ensemble = Ensemble(contract, kind)
        ensemble.mean(back, later(0.0), q)
        data = ensemble.mean(there, later(0.001), q)
        shares.append(data[8, 0] / there[8, 0])  # 1: only the newest
    assert shares[1] > shares[0] + 0.02


def test_unknown_ensemble_is_refused(contract):
    with pytest.raises(ValueError, match="allowed"):
        Ensemble(contract, "median")
