"""Which episodes an evaluation plays: the same for the same seed, all families alike, and what goes together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vla_ros.sim.tasks import FAMILIES, HELD_OUT_PAIRS, parse
from vla_ros.training.evaluate import Episode, Trial, concrete, report, trials

pytestmark = pytest.mark.unit


def episode(**facts) -> Episode:
    return Episode(0, "push", "push it", facts.pop("success", False), False, facts.pop("done", False), 1.0, "", **facts)


def test_families_take_turns_and_seeds_count_up():
    planned = trials(18, 40)
    assert [t.seed for t in planned] == list(range(40, 58))
    assert set(Counter(t.family for t in planned).values()) == {3} and planned == trials(18, 40)
    assert {t.family for t in trials(5, 0, family="drawer")} == {"drawer"}


def test_a_swap_test_plays_every_scene_twice():
    planned = trials(8, 3, swap=True)
    assert [(t.seed, t.swap) for t in planned] == [(s, k) for s in range(3, 7) for k in (0, 1)]
    assert all(a.family == b.family for a, b in zip(planned[::2], planned[1::2], strict=True))


def test_held_out_pairs_are_asked_only_of_families_that_name_objects():
    assert {t.family for t in trials(12, 0, pairs="heldout")} == {f.name for f in FAMILIES.values() if f.shapes}
    with pytest.raises(ValueError, match="names no object"):
        trials(4, 0, family="press", pairs="heldout")


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("lift the {colour} {shape}", "pick"),
        ("put the {colour} {shape} in the {target} bowl", "put"),
        ("put the {colour} {flat} on top of the {colour2} {flat2}", "stack"),
        ("push the {colour} {flat} to the {side}", "push"),
        ("{way} push the {colour} {flat}", "push"),
        ("press the button", "press"),
    ],
)
def test_a_template_becomes_a_sentence_of_its_family(template, family):
    rng = np.random.default_rng(0)
    drawn = [parse(concrete(template, rng)) for _ in range(20)]
    assert {task.family for task in drawn} == {family}
    assert not {task.pair for task in drawn} & set(HELD_OUT_PAIRS)
    if FAMILIES[family].shapes:
        assert {parse(concrete(template, rng, heldout_pair=True)).pair for _ in range(20)} <= set(HELD_OUT_PAIRS)
    assert {t.family for t in trials(3, 0, text=template)} == {family}


def test_a_template_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no task"):
        trials(2, 0, text="stack the {colour} {shape}, the {colour} {shape} and the {colour} {shape}")


def test_a_sentence_is_asked_as_it_is():
    assert trials(2, 5, text="wash the car")[1] == Trial(6, "put", "wash the car")


def test_the_report_counts_where_a_swap_test_went():
    episodes = [
        episode(success=True, done=True, obeyed=True),
        episode(done=True, wrong_direction=True, obeyed=False),
        episode(obeyed=None),
        episode(success=True, obeyed=True, jerk_mean_rad_s3=8.0),
    ]
    facts = report(episodes)
    assert facts["swap_obeyed"] == pytest.approx(2 / 3) and facts["swap_decided"] == 0.75
    assert facts["wrong_direction"] == 0.25 and facts["false_done"] == 0.25 and facts["jerk_mean"] == 2.0
    assert report(episodes[:0])["swap_obeyed"] is None
