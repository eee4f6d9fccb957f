"""How an evaluation asks for chunks and joins them, without a world: the ways of asking, and what each sends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation, Severity
from vla_ros.policy.runtime import PolicyOutput
from vla_ros.training.evaluate import check
from vla_ros.training.rollout import CHUNK_DELAY_S, CHUNKINGS, Execution, Proposer
from vla_ros.training.scores import paired, report, wilson

pytestmark = pytest.mark.unit
MOVES = SimpleNamespace(severity=Severity.RUN, phase="moving")


@pytest.fixture(scope="module")
def contract():
    return contracts.load("panda")


class Policy:
    """Wants to stay, and says how many rows it was given. Every second answer is 4 cm to the left."""

    manifest = SimpleNamespace(prefix_max=6)

    def __init__(self):
        self.given = []

    def infer(self, observation, text, rng, prefix=None):
        self.given.append(None if prefix is None else len(prefix))
        data = np.zeros((16, 7))
        data[:, 1] = 0.04 * (len(self.given) % 2)
        return PolicyOutput(data, 0.0, 1.0, 0.0)


def proposals(contract, execution, count=4, decision=MOVES):
    """(policy, chunks): observations 133 ms apart from an arm that stands."""
    policy = Policy()
    proposer = Proposer(contract, policy, execution, "stay")
    chunks = []
    for k in range(count):
        now_s = 10.0 + k * 0.1333
        proposer.watch(decision)
        observation = Observation(
            round(now_s * 1e9), k + 1, contract.hash, {}, contract.poses.ready_rad, np.zeros(7), 0.08
        )
        chunks.append(proposer.propose(observation, np.random.default_rng(0), 3, now_s))
    return policy, chunks


def test_prefix_is_given_to_the_policy_and_named_in_the_chunk(contract):
    policy, chunks = proposals(contract, Execution("prefix"))
    assert policy.given[0] == 0 and chunks[0].committed_rows == 0
    assert all(rows == 5 for rows in policy.given[2::2])  # 60 ms, 30 ms of the arm, 120 ms of the limiter's look-ahead
    assert [chunk.committed_rows for chunk in chunks] == policy.given
    assert [chunk.sequence for chunk in chunks] == [1, 2, 3, 4]


def test_longer_delay_makes_a_longer_prefix_up_to_what_was_trained(contract):
    rows = [proposals(contract, Execution("prefix", delay_steps=d))[0].given[2] for d in (0, 1, 4)]
    assert rows == [5, 6, 6]


def test_arm_that_holds_commits_to_nothing(contract):
    policy, _ = proposals(
        contract, Execution("prefix"), decision=SimpleNamespace(severity=Severity.HOLD, phase="holding")
    )
    assert policy.given == [0, 0, 0, 0]


@pytest.mark.parametrize("chunking", ["naive", "ensemble", "adaptive"])
def test_no_prefix_is_given_where_chunks_are_joined_otherwise(contract, chunking):
    policy, chunks = proposals(contract, Execution(chunking))
    assert policy.given == [None] * 4 and all(chunk.committed_rows == 0 for chunk in chunks)
    averaged = np.array([chunk.data[0, 1] for chunk in chunks])
    if chunking == "naive":
        np.testing.assert_allclose(averaged, [0.04, 0.0, 0.04, 0.0])
    else:
        assert np.abs(np.diff(averaged)).max() < 0.025


def test_asking_less_often_than_chunks_may_grow_old_widens_that_one_timeout(contract):
    usual = Execution().contract_for(contract)
    assert usual is contract and Execution().spacing_s(contract) == pytest.approx(2 / 15)
    rare = Execution(rows_per_inference=16)
    wide = rare.contract_for(contract)
    assert wide.timeouts.chunk_s >= rare.spacing_s(contract) + CHUNK_DELAY_S and wide.hash == contract.hash
    assert wide.timeouts.image_s == contract.timeouts.image_s and wide.limits is contract.limits
    assert Execution(rows_per_inference=1).contract_for(contract).timeouts == contract.timeouts


@pytest.mark.parametrize(
    ("execution", "runtime", "told"),
    [
        (Execution("median"), "int8", "naive"),
        (Execution(delay_steps=16), "int8", "0 to 15"),
        (Execution(rows_per_inference=17), "int8", "1 to 16"),
        (Execution("guided"), "int8", "torch"),
    ],
)
def test_what_cannot_be_executed_is_refused_with_what_can(execution, runtime, told):
    with pytest.raises(ValueError, match=told):
        check(execution, runtime, "panda")


def test_every_way_of_joining_is_allowed_on_its_runtime():
    for chunking in CHUNKINGS:
        check(Execution(chunking), "torch", "panda")


def test_paired_comparison_counts_the_seeds_that_differ():
    ours, theirs = [True] * 10 + [False, False], [True, True] + [False] * 8 + [True, False]
    assert paired(ours, theirs)[:2] == (8, 1)
    assert paired(ours, theirs)[2] == pytest.approx(2 * (1 + 9) / 2**9)
    assert paired(ours, ours) == (0, 0, 1.0)
    with pytest.raises(ValueError):
        paired([True], [])


def test_report_of_nothing_has_every_key_and_no_division_by_zero():
    facts = report([])
    assert facts["success"] == facts["done_recall"] == 0.0 and facts["wilson"] == list(wilson(0, 0))
