"""The audit finds what was planted and is silent on good episodes. All of it: `benchmarks/data/audit.py`."""

from __future__ import annotations

import json

import bags
import numpy as np
import pytest
from script_loader import load_script
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.data.audit import audit
from vla_ros.data.bag_reader import Bag
from vla_ros.data.findings import Kind, Weight, finding, grade
from vla_ros.data.timing import NS, Stream, judge

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/data/audit.py")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return bags.make(tmp_path_factory.mktemp("bags"), "good", seconds=4.0)


def test_a_good_episode_is_graded_a(good):
    result = audit(Bag.open(good), bags.fabric().contract)
    assert (result.grade, result.findings) == ("A", [])


@pytest.mark.parametrize("since_s, until_s", [(0.0, 10.0), (1.5, 2.5)], ids=["demonstration", "correction"])
def test_what_a_person_did_is_no_gap_and_no_missing_policy(since_s, until_s, tmp_path):
    bag = Bag.open(bags.make(tmp_path, "taught", seconds=4.0, change=bags.by_hand(since_s, until_s)))
    result = audit(bag, bags.fabric().contract)
    assert (result.grade, result.findings) == ("A", [])


def test_one_planted_fault_of_each_kind_is_found(benchmark, tmp_path):
    """Those of time are below, without bags."""
    of_time = (Kind.RATE, Kind.LOST, Kind.SKEW, Kind.DRIFT, Kind.STAMPS)
    one_each = {fault.kind: fault for fault in benchmark.faults() if fault.kind not in of_time}
    facts = benchmark.run([], list(one_each.values()), tmp_path)
    assert facts["kinds"] >= 11 and facts["missed"] == []


def test_a_recorder_that_stood_still_left_a_gap_and_no_wrong_rate(tmp_path):
    """Then it heard everything at once: the commands were sent at their rate all the same."""
    begin_ns, end_ns = bags.START_NS + NS, bags.START_NS + 2 * NS + NS // 2

    def late(m):
        return (m._replace(log_ns=end_ns + (m.log_ns - begin_ns) // 100) if begin_ns < m.log_ns < end_ns else m,)

    found = audit(Bag.open(bags.make(tmp_path, "late", seconds=4.0, change=late)), bags.fabric().contract).findings
    kinds = {f.kind for f in found if f.topic.endswith("safe_command")}
    assert Kind.GAP in kinds and Kind.RATE not in kinds


def test_the_heaviest_finding_is_the_grade():
    minor, major, fatal = (finding(Kind.GAP, "", 0, 0, weight=weight) for weight in Weight)
    assert [grade(f) for f in ([], [minor], [minor, major], [major, fatal])] == ["A", "B", "C", "D"]


def stream(times_s, delay_s=0.01, rate_hz=15.0, **of_stream):
    stamps = np.round(np.asarray(times_s) * NS).astype(np.int64)
    logs = stamps + np.round(np.broadcast_to(delay_s, stamps.shape) * NS).astype(np.int64)
    return Stream("/t", logs, stamps, rate_hz, **{"at_least": False, "gap_max_s": 0.2, "frames": True, **of_stream})


def kinds(of, length_s=10.0):
    return {f.kind for f in judge(of, 0, round(length_s * NS))}


STEADY = np.arange(150) / 15.0


def test_a_steady_stream_has_no_finding_and_a_busy_machine_only_delays():
    rng = np.random.default_rng(0)
    assert kinds(stream(STEADY)) == set()
    assert kinds(stream(STEADY, 0.01 + np.abs(rng.normal(0.0, 0.02, STEADY.size)))) == set()


@pytest.mark.parametrize(
    "of, expected",
    [
        (stream(STEADY[::2]), {Kind.RATE, Kind.LOST}),
        (stream(STEADY * 0.7, at_least=True, rate_hz=15.0), {Kind.GAP}),  # faster is allowed; it ends early
        (stream(np.delete(STEADY, slice(60, 66))), {Kind.GAP, Kind.LOST}),
        (stream(np.delete(STEADY, 70)), {Kind.LOST}),
        (stream(STEADY, 0.1), {Kind.SKEW}),
        (stream(STEADY, -0.05), {Kind.SKEW}),
        (stream(STEADY, np.linspace(0.01, 0.07, 150)), {Kind.DRIFT}),
        (stream(np.insert(STEADY, 5, STEADY[4])), {Kind.STAMPS}),
        (stream([]), {Kind.GAP}),
    ],
)
def test_irregular_times_are_named_for_what_they_are(of, expected):
    assert kinds(of) == expected


def test_command_prints_findings_and_fails_below_the_wanted_grade(good, tmp_path):
    result = CliRunner().invoke(app, ["bag", "audit", str(good), "--least", "A", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["bags"][0]["grade"] == "A"
    bad = bags.make(tmp_path, "bad", seconds=1.0, text="", without=("/vla/safe_command",))
    result = CliRunner().invoke(app, ["bag", "audit", str(good), str(bad), "--json"])
    facts = json.loads(result.stdout)
    assert result.exit_code == 1 and [b["grade"] for b in facts["bags"]] == ["A", "D"]
    assert {f["kind"] for f in facts["bags"][1]["findings"]} >= {"missing_topic", "metadata"}
    assert all({"topic", "at_s", "value", "threshold"} <= f.keys() for f in facts["bags"][1]["findings"])
