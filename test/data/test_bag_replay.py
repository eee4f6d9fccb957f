"""A bag as a regression test: the same code gives what was recorded, other code is noticed."""

from __future__ import annotations

import copy
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


TAKEN_S = (0.8, 1.8)


@pytest.fixture(scope="module")
def correction():
    """A policy is stopped in motion by a person, who lifts the tool and hands back; then it goes on."""
    return bags.closed_loop(2.6, taken_s=TAKEN_S)


def replayed_bag(folder, contract, content, **changes):
    now, recorded = replays.replay(
        Bag.open(bags.make(folder, "correction", content=content, instruction_id=1, **changes)),
        contract, bags.Reaching(), recorded_chunks=True,
    )  # fmt: skip
    return now, recorded, replays.compare(now, recorded, replays.AGAINST_BASELINE, contract)


def test_take_over_and_hand_back_are_replayed_as_they_were_recorded(correction, contract, tmp_path):
    said = [(m.message.phase, m.log_ns) for m in correction if m.topic == "/vla/safety_state"]
    person = [m.log_ns for m in correction if m.topic == "/vla/teleop_chunk"]
    driven = [m.message.data for m in correction if m.topic == "/vla/teleoperated"]
    assert driven[0] is False and driven[-1] is False and any(driven) and len(person) >= 8
    moving = [log_ns for phase, log_ns in said if phase == "moving"]
    assert moving[0] < person[0] < moving[-1] > person[-1] + 2 * bags.NS // 10  # the policy goes on afterwards
    now, recorded, result = replayed_bag(tmp_path, contract, correction)
    assert result.differences == [] and now.notes == []
    assert len(now.commands) == len(recorded.commands) == 260 and result.figures["command_rad"] < 1e-6
    assert now.events == recorded.events and now.events["other_source"] == 1
    assert now.holds == recorded.holds


def test_without_the_word_who_drives_or_the_persons_chunks_the_motion_is_another(correction, contract, tmp_path):
    for topic in ("teleoperated", "teleop_chunk"):
        _, _, result = replayed_bag(tmp_path / topic, contract, correction, without=(topic,))
        assert any("command mm" in words for words in result.differences), topic


def test_chunks_that_the_recorder_missed_are_told(correction, contract, tmp_path):
    content, accepted = [], 0
    for made in correction:
        accepted += made.topic in ("/vla/action_chunk", "/vla/teleop_chunk")
        if made.topic == "/vla/safety_state":
            made = made._replace(message=copy.copy(made.message))
            made.message.chunks_accepted = accepted
        if made.topic != "/vla/teleop_chunk":
            content.append(made)
    now, _, _ = replayed_bag(tmp_path, contract, content)
    assert any("the recording may lack some" in note for note in now.notes)


def test_malformed_chunks_are_left_out_and_told(correction, contract, tmp_path):
    content = []
    for made in correction:
        content.append(made)
        if made.topic.endswith("_chunk"):
            broken = made._replace(message=copy.copy(made.message), log_ns=made.log_ns + 1)
            broken.message.rows += 1
            content.append(broken)
    now, _, result = replayed_bag(tmp_path, contract, content)
    broken = sum(made.topic.endswith("_chunk") for made in correction)
    assert result.figures["command_rad"] < 1e-6
    assert now.notes == [f"{broken} malformed chunks are left out, as in the running supervisor"]


def test_demonstration_by_hand_is_replayed_and_ends_where_it_was_handed_back(contract, tmp_path):
    """The person has the arm before the sentence is said: no policy was asked, and none goes on with it."""
    content = bags.closed_loop(1.9, taken_s=(0.1, 1.5))
    said = [(m.message.phase, m.message.instruction_id) for m in content if m.topic == "/vla/safety_state"]
    assert ("moving", 1) in said and said[-1] == ("idle", 0)
    now, recorded, result = replayed_bag(tmp_path, contract, content)
    assert result.differences == [] and now.notes == [] and result.figures["command_rad"] < 1e-6
    assert len(now.commands) == len(recorded.commands) == 190


def test_replay_begins_while_a_person_drives_what_the_policy_had_accepted(correction, contract, tmp_path):
    """As `vla record last` may cut it: what the policy had been asked is known from the states alone."""
    cut_ns = bags.START_NS + round((TAKEN_S[0] + 0.4) * bags.NS)
    kept = [m for m in correction if m.log_ns >= cut_ns]
    now, recorded, result = replayed_bag(tmp_path, contract, kept)
    assert now.notes == [] and len(now.commands) == 140 and result.figures["command_rad"] < 1e-6, result
    # Until the first chunk after the cut the replay waits, and says once more that it does not listen to the policy.
    assert sorted(words.split()[1] for words in result.differences) == ["instruction_changed", "other_source"]
    assert replays.compare(now, recorded, replays.AGAINST_RECORDING, contract).differences == []


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
