"""What fine-tuning cost is told per family and as a paired comparison; nothing is measured on scenes that differ."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from vla_ros.training.forgetting import compare, table
from vla_ros.training.scores import Episode

pytestmark = pytest.mark.unit


def episodes(wins: list[bool]) -> list[Episode]:
    plain = Episode(0, "pick", "pick up the red cube", True, False, True, 3.0, "")
    families = ("pick", "put")
    return [dataclasses.replace(plain, seed=k, family=families[k % 2], success=win) for k, win in enumerate(wins)]


def test_what_was_lost_is_told_in_points_by_family_and_as_pairs():
    before, after = episodes([True] * 9 + [False]), episodes([False, True, False] + [True] * 7)
    found = compare(before, after)
    assert found["lost_points"] == pytest.approx(10.0)
    assert (found["only_before"], found["only_after"], found["mcnemar_p"]) == (2, 1, 1.0)
    assert found["families"]["pick"]["lost_points"] == pytest.approx(40.0)
    assert found["families"]["put"]["lost_points"] == pytest.approx(-20.0), "a gain is a negative loss"
    assert found["before"]["wilson"][0] < 0.9 < found["before"]["wilson"][1]


def test_other_scenes_are_no_comparison():
    with pytest.raises(ValueError, match="the same episodes"):
        compare(episodes([True, True]), episodes([True]))


def test_the_table_shows_every_family():
    console = Console(file=io.StringIO(), width=120)
    console.print(table(compare(episodes([True] * 4), episodes([True, True, True, False]))))
    shown = console.file.getvalue()
    assert "pick" in shown and "+50.0" in shown and "+25.0" in shown
