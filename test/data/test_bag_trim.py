"""An episode is cut without changing what is left, and without losing what it is about."""

from __future__ import annotations

import json

import bags
import pytest
from rosbags.highlevel import AnyReader
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.errors import Invalid
from vla_ros.data.bag_reader import Bag, BagError
from vla_ros.data.trim import phase, trim

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return bags.make(tmp_path_factory.mktemp("bags"), "good", seconds=3.0)


def test_a_span_keeps_every_message_within_it_as_it_was(good, tmp_path):
    bag = Bag.open(good)
    trim(bag, tmp_path / "cut", 1.0, 2.0)
    low, high = bag.start_ns + bags.NS, bag.start_ns + 2 * bags.NS
    within = {(m.topic, m.log_ns, m.data) for m in bag.messages(None, low, high)}
    cut = Bag.open(tmp_path / "cut")
    kept = [(m.topic, m.log_ns, m.data) for m in cut.messages()]
    assert within <= set(kept) and cut.topics.keys() == bag.topics.keys()
    with AnyReader([tmp_path / "cut"]) as reader:
        assert sum(1 for _ in reader.messages()) == len(kept)


def test_the_instruction_that_still_holds_is_repeated_at_the_start(good, tmp_path):
    bag = Bag.open(good)
    trim(bag, tmp_path / "cut", 1.0, 2.0)
    cut = Bag.open(tmp_path / "cut")
    first = next(cut.messages(["/vla/instruction"]))
    assert first.log_ns == bag.start_ns + bags.NS and cut.decode(first).text == "pick up the red cube"
    assert cut.episode().text == "pick up the red cube" and cut.custom_data["trimmed_s"] == "1.000 to 2.000"


def test_a_phase_reaches_from_the_instruction_to_its_outcome(good):
    start_s, end_s = phase(Bag.open(good), margin_s=0.1)
    assert start_s == pytest.approx(bags.INSTRUCTION_AT_S - 0.1, abs=0.02)
    assert end_s == pytest.approx(3.0 - bags.DONE_BEFORE_END_S + 0.1, abs=0.05)


def test_an_episode_without_an_instruction_has_no_phase(tmp_path):
    bag = Bag.open(bags.make(tmp_path, "mute", seconds=1.0, without=("/vla/instruction",)))
    with pytest.raises(BagError, match="give --start and --end"):
        phase(bag)


@pytest.mark.parametrize("span", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (5.0, 6.0), (float("nan"), 1.0)])
def test_an_empty_span_is_refused_and_leaves_nothing(good, tmp_path, span):
    with pytest.raises(Invalid):
        trim(Bag.open(good), tmp_path / "cut", *span)
    assert not list(tmp_path.iterdir())


def test_command_cuts_by_phase_or_by_time_and_overwrites_nothing(good, tmp_path):
    out = tmp_path / "cut"
    result = CliRunner().invoke(app, ["bag", "trim", str(good), "--out", str(out), "--phase", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["messages"] == Bag.open(out).messages_total
    again = CliRunner().invoke(app, ["bag", "trim", str(good), "--out", str(out), "--start", "1", "--json"])
    assert again.exit_code == 1 and "does not exist yet" in json.loads(again.stdout)["error"]
    neither = CliRunner().invoke(app, ["bag", "trim", str(good), "--out", str(tmp_path / "x"), "--json"])
    assert neither.exit_code == 1 and "--phase" in json.loads(neither.stdout)["error"]
