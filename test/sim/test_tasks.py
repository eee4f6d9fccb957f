"""Promises of the task families: plain data, and words that read back."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from vla_ros.sim import tasks
from vla_ros.sim.tasks import COLOURS, FAMILIES, HELD_OUT_PAIRS, HELD_OUT_REGIONS_M, SLOTS, Task

pytestmark = pytest.mark.unit


def every_task() -> list[Task]:
    found = []
    for family in FAMILIES.values():
        pairs = list(product(COLOURS, family.shapes)) or [(None, None)]
        found += [Task(family.name, *pair, target) for pair in pairs for target in family.targets]
    return [task for task in found if task.base is None or task.base != task.pair]


def words(templates) -> set[str]:
    return {word for text in templates for word in re.sub(r"\{\w+\}", " ", text).split()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_has_25_phrasings_and_about_a_third_is_held_out(family):
    assert len(set(family.phrasings)) == len(family.phrasings) >= 25
    for form in family.forms.values():
        assert 0.25 <= len(form.heldout) / (len(form.trained) + len(form.heldout)) <= 0.4
        assert {slot for text in form.trained for slot in tasks.slots_of(text)} <= set(SLOTS)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_held_out_phrasings_use_words_that_their_form_was_taught(family):
    everywhere = words(text for f in FAMILIES.values() for form in f.forms.values() for text in form.trained)
    for form in family.forms.values():
        assert words(form.heldout) <= everywhere


def test_every_sentence_reads_back():
    rng = np.random.default_rng(0)
    for task in every_task():
        form = FAMILIES[task.family].form(task.target)
        for template in (*form.trained, *form.heldout):
            text = tasks.fill(template, task, rng)
            assert tasks.parse(text) == task, text
            assert set(text.split()) <= tasks.all_words()


def test_a_drawn_sentence_is_held_out_only_when_asked_for():
    rng = np.random.default_rng(1)
    task = Task("drawer", target="open")
    form = FAMILIES["drawer"].forms["open the drawer"]
    assert {tasks.sentence(task, rng) for _ in range(200)} == set(form.trained)
    assert {tasks.sentence(task, rng, heldout=True) for _ in range(200)} == set(form.heldout)


def test_task_codes_round_trip():
    for task in every_task():
        assert tasks.from_codes(np.array(task.codes(), dtype=np.int8)) == task


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wash the car",
        "put the red cube in the blue ball",
        "stack the red cube on the red cube",
        "stack the red ball on the blue cube",
        "push the red ball to the left",
        "push the red cube left and right",
        "put the red cube in the drawer",
        "open and close the drawer",
        "the drawer",
    ],
)
def test_a_sentence_without_a_task_reads_as_none(text):
    assert tasks.parse(text) is None


def test_what_stands_on_what_is_read_from_the_words_not_from_their_order():
    wanted = Task("stack", "red", "cube", "blue cylinder")
    assert tasks.parse("put the red block on top of the blue can") == wanted
    assert tasks.parse("on top of the blue can put the red block") == wanted


def test_held_out_pairs_and_regions_leave_most_of_the_table_for_training():
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(tasks.SHAPES)
    assert all(colour in COLOURS for colour, _ in HELD_OUT_PAIRS)
    assert all(x0 < x1 and y0 < y1 for x0, x1, y0, y1 in HELD_OUT_REGIONS_M)
