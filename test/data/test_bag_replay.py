"""A bag as a regression test: the same code gives what was recorded, other code is noticed."""

from __future__ import annotations

import dataclasses
import json

import bags
import pytest
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.errors import Invalid
from vla_ros.data import replay as replays
from vla_ros.data.bag_reader import Bag, BagError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def contract():
    return bags.fabric().contract


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    content = bags.closed_loop(3.0)
    return bags.make(tmp_path_factory.mktemp("bags"), "loop", content=content, instruction_id=1)


@pytest.fixture(scope="module")
def replayed(episode, contract):
    return replays.replay(Bag.open(episode), contract, bags.Reaching())


def test_the_same_code_gives_the_recorded_chunks_commands_and_vetoes(replayed, contract):
    now, recorded = replayed
    result = replays.compare(now, recorded, replays.AGAINST_BASELINE, contract)
    assert result.differences == [] and len(now.answers) > 8 and len(now.commands) == 300
    assert result.figures["row_mm_max"] < 1e-3 and result.figures["command_rad"] < 1e-6
    assert now.events == recorded.events and now.holds == recorded.holds


def test_another_policy_is_noticed_in_its_chunks_and_in_the_motion(episode, replayed, contract):
    now, _ = replays.replay(Bag.open(episode), contract, bags.Reaching((0.1, 0.0, 0.0)))
    words = " ".join(replays.compare(now, replayed[1], replays.AGAINST_RECORDING, contract).differences)
    assert "row mm" in words and "command mm" in words


def test_the_supervisor_alone_is_tested_with_the_recorded_chunks(episode, replayed, contract):
    now, recorded = replays.replay(Bag.open(episode), contract, bags.Reaching((0.1, 0.0, 0.0)), recorded_chunks=True)
    result = replays.compare(now, recorded, replays.AGAINST_RECORDING, contract)
    assert result.figures["command_rad"] < 1e-6 and any("row mm" in words for words in result.differences)


def test_another_seed_draws_other_noise(episode, replayed, contract):
    now, recorded = replays.replay(Bag.open(episode), contract, bags.Reaching(), seed=1)
    off = replays.compare(now, recorded, replays.AGAINST_RECORDING, contract).figures["row_mm_max"]
    assert 1e-3 < off < 5.0  # the noise of `Reaching` is 0.1 mm


def test_a_slower_policy_and_more_vetoes_are_differences(replayed, contract):
    now, recorded = replayed
    slow = dataclasses.replace(now, inference_ms=[10.0 * ms for ms in now.inference_ms])
    vetoed = dataclasses.replace(now, events=now.events + type(now.events)({"workspace": 5}))
    for changed, word in ((slow, "latency"), (vetoed, "workspace 5 times")):
        words = replays.compare(changed, recorded, replays.AGAINST_RECORDING, contract).differences
        assert len(words) == 1 and word in words[0]


def test_a_baseline_holds_what_a_replay_gave_and_is_never_overwritten(replayed, contract, tmp_path):
    now, _ = replayed
    path = tmp_path / "baseline.json"
    replays.write_baseline(path, now)
    assert (
        replays.compare(now, replays.read_baseline(path, contract), replays.AGAINST_BASELINE, contract).differences
        == []
    )
    with pytest.raises(Invalid, match="does not exist yet"):
        replays.write_baseline(path, now)
    with pytest.raises(BagError, match="of contract"):
        replays.read_baseline(path, dataclasses.replace(contract, hash="0" * 64))
    path.write_text("{}")
    with pytest.raises(BagError, match="not a baseline"):
        replays.read_baseline(path, contract)


def test_a_bag_of_another_contract_is_not_replayed(episode, contract):
    with pytest.raises(BagError, match="another contract"):
        replays.replay(Bag.open(episode), dataclasses.replace(contract, hash="0" * 64), bags.Reaching())


def test_a_bag_without_commands_or_cameras_says_what_is_missing(contract, tmp_path):
    content = bags.closed_loop(0.5)
    for topic, said in (("/vla/safe_command", "safe_command"), ("image_raw/compressed", "camera/scene/image_raw")):
        bag = bags.make(tmp_path, topic.strip("/").replace("/", "_"), content=content, without=(topic,))
        with pytest.raises(BagError, match=f"no message on {said}"):
            replays.replay(Bag.open(bag), contract, bags.Reaching())


def test_the_policy_node_draws_as_much_noise_before_its_first_chunk_as_the_replay_takes_it_to():
    from vla_ros.nodes import policy

    assert policy.WARM_UP_CALLS == replays.WARM_UP_CALLS


def test_command_compares_the_shipped_policy_with_its_own_baseline(episode, tmp_path):
    """The recording was made by another policy: different from it (exit code 1), the same as its own baseline (0)."""
    baseline = tmp_path / "baseline.json"
    command = ["bag", "replay", str(episode), "--json"]
    result = CliRunner().invoke(app, [*command, "--write-baseline", str(baseline)])
    facts = json.loads(result.stdout)
    assert result.exit_code == 1 and "different" in facts["error"] and not facts["same_policy"]
    result = CliRunner().invoke(app, [*command, "--baseline", str(baseline)])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["differences"] == [] and facts["against"] == str(baseline)
