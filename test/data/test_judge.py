"""The judge finds sentences that do not say what happened, and says what it goes by."""

from __future__ import annotations

import bags
import pytest

from vla_ros.data.bag_reader import Bag
from vla_ros.data.episode import Episode
from vla_ros.data.judge import Facts, Verdict, facts, judge

pytestmark = pytest.mark.unit
PICK, PUT = "pick up the red cube", "put the red cube in the blue bowl"
HELD = Facts(told=(PICK,), closed_at_s=(2.0,), end_width_m=0.04)
RELEASED = Facts(told=(PUT,), closed_at_s=(2.0,), opened_at_s=(4.0,), end_width_m=0.08)


def episode(text: str = PICK, **known: object) -> Episode:
    return Episode(text=text, **known)


@pytest.mark.parametrize(
    ("told", "known", "verdict", "why"),
    [
        (episode(success=True), HELD, Verdict.FITS, ""),
        (episode(PUT, success=True), RELEASED, Verdict.FITS, ""),
        (episode(), HELD, Verdict.FITS, ""),
        (episode(PUT), RELEASED, Verdict.FITS, ""),
        (episode("wave at me", outcome="done"), Facts(done_probability=0.97), Verdict.FITS, ""),
        (episode(success=False, outcome_reason="dropped"), HELD, Verdict.WRONG, "dropped"),
        (
            episode(success=True, outcome_reason="the red cube is 0.0 cm above; the blue ball was moved"),
            HELD,
            Verdict.WRONG,
            "the blue ball was moved",
        ),
        (episode("lift the blue ball"), HELD, Verdict.WRONG, "the arm was told 'pick up the red cube'"),
        (episode("  "), HELD, Verdict.WRONG, "text is empty"),
        (episode(), Facts(told=(PICK,), end_width_m=0.08), Verdict.WRONG, "never closed"),
        (episode(), Facts(told=(PICK,), closed_at_s=(2.0,), end_width_m=5e-4), Verdict.WRONG, "nothing is in the hand"),
        (episode(), RELEASED, Verdict.WRONG, "the arm was told"),
        (episode(PUT), Facts(told=(PUT,), closed_at_s=(2.0,), end_width_m=0.04), Verdict.WRONG, "not opened again"),
        (episode(outcome="timeout"), HELD, Verdict.WRONG, "it ended as timeout"),
        (episode(), Facts(done_probability=0.2), Verdict.DOUBTFUL, "only 20%"),
        (episode(), Facts(told=(PICK, "lift the blue ball"), closed_at_s=(2.0,), end_width_m=0.04),
         Verdict.DOUBTFUL, "also told 'lift the blue ball'"),
        (episode("wave at me"), Facts(), Verdict.DOUBTFUL, "nothing is known"),
    ],
)  # fmt: skip
def test_verdict_and_reason(told: Episode, known: Facts, verdict: Verdict, why: str) -> None:
    found = judge(told, known)
    assert found.verdict == verdict, found
    assert why in "; ".join(found.reasons)
    assert 0.0 <= found.score <= 1.0
    assert (found.score >= 0.5) == (verdict is Verdict.FITS) or verdict is Verdict.DOUBTFUL


def test_it_says_what_it_goes_by() -> None:
    assert judge(episode(success=True), HELD).basis == "world"
    assert judge(episode(), Facts(done_probability=0.9)).basis == "policy"
    assert judge(episode(), HELD).basis == "motion"
    assert judge(episode("wave at me"), Facts()).basis == "none"


def test_facts_come_from_the_bag(tmp_path) -> None:
    """The hand closes at 1.0 s, and nothing opens it again."""

    def close(made: bags.Made):
        if made.topic == "/vla/safe_command" and made.log_ns >= bags.START_NS + bags.NS:
            made.message.gripper_width = 0.0
        yield made

    without = ("compressed",)
    bag = Bag.open(bags.make(tmp_path, "closing", seconds=1.6, change=close, without=without))
    known = facts(bag, bags.fabric().contract)
    assert known.told == (PICK,)
    assert known.closed_at_s == pytest.approx((1.0,), abs=0.02) and known.opened_at_s == ()
    assert known.done_probability == pytest.approx(0.1) and known.confidence == pytest.approx(0.9)
    assert known.end_width_m == pytest.approx(0.08)  # the fingers are said to close; these do not
