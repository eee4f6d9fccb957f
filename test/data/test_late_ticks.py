"""What decides whether a recorder costs the control loop anything."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


@pytest.fixture
def late_ticks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks" / "data"))
    return importlib.import_module("late_ticks")


def judged(late_ticks, without, beside, ticks=1000):
    rounds = [
        late_ticks.Round(kind, ticks, late) for kind, lates in ((False, without), (True, beside)) for late in lates
    ]
    return rounds, late_ticks.judge(rounds)


def test_rounds_are_taken_in_turn(late_ticks):
    assert late_ticks.turns(3) == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("without", "beside", "decided", "met"),
    [
        ((0, 1, 0), (0, 0, 2), True, True),
        ((0, 1, 0), (9, 11, 10), True, False),
        ((0, 60, 5), (0, 70, 10), False, False),  # the machine does something else now and then
        ((9, 11, 10), (0, 0, 0), True, True),
    ],
)
def test_more_late_ticks_than_noise_miss_the_bar_and_a_busy_machine_decides_nothing(
    late_ticks, without, beside, decided, met
):
    rounds, verdict = judged(late_ticks, without, beside)
    assert (verdict.decided, verdict.met) == (decided, met)
    words = "within noise" if met else "more with a recorder" if decided else "not decided"
    assert words in late_ticks.markdown(rounds, verdict)


@pytest.mark.parametrize(
    ("without", "ticks"), [((0, 0), 50), ((0,), 1000), ((40, 40), 1000)], ids=["stopped at once", "one round", "busy"]
)
def test_what_says_too_little_decides_nothing(late_ticks, without, ticks):
    _, verdict = judged(late_ticks, without, without, ticks)
    assert not verdict.decided and not verdict.met
