"""Which sentences are taken. The sentences of the task families are the taught ones."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.errors import Refused
from vla_ros.policy.language import Language, Lexicon, Phrases
from vla_ros.policy.tokenizer import PAD, SPECIAL, UNKNOWN, Tokenizer, split
from vla_ros.sim import tasks

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def language():
    """Made from the trained phrasings alone."""
    phrases = {name: form.trained for family in tasks.FAMILIES.values() for name, form in family.forms.items()}
    families = tuple(Phrases(name=name, templates=trained) for name, trained in phrases.items())
    return Language(Lexicon(families=families, slots=tasks.SLOTS), 18)


@pytest.mark.parametrize("family", list(tasks.FAMILIES))
def test_every_phrasing_is_taken_also_one_that_was_held_out(language, family):
    rng = np.random.default_rng(0)
    for form in tasks.FAMILIES[family].forms.values():
        for template in (*form.trained, *form.heldout):
            target = form.targets[int(rng.integers(len(form.targets)))]
            for shape in tasks.FAMILIES[family].shapes or (None,):
                colour = None if shape is None else str(rng.choice(list(tasks.COLOURS)))
                for _ in range(3):  # synonyms
                    language.judge(tasks.fill(template, tasks.Task(family, colour, shape, target), rng))


@pytest.mark.parametrize(
    "text",
    [
        "Pick up the RED cube!",
        "please lift the blue ball",
        "could you grab the green can for me",
        "put the red block into the yellow bowl, please",
        "can you stack the red can on the blue can",
        "push the button, please",
        "could you close the drawer for me",
    ],
)
def test_close_variants_of_taught_sentences_are_taken(language, text):
    language.judge(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no words"),
        ("?!", "no words"),
        ("lift the kettle", "kettle"),
        ("lift the red kub", "kub"),
        ("pick up the purple cube", "purple"),
        ("wash the car", "wash"),
        ("do not pick up the red cube", "not"),
        ("pick up the cube", "nearest"),
        ("pick up the red", "nearest"),
        ("the red cube", "what to do"),
        ("put the red cube in the blue ball", "together"),
        ("pick up the red cube and the blue ball", "together"),
        ("drop the red cube", "drop"),
        ("cube red the up pick", "nearest"),
        ("put the red cube", "put"),
        ("put the red cube in the drawer", "drawer"),
        ("the drawer", "what to do"),
        ("open the button", "open"),
        ("close the tray", "close"),
        ("open and close the drawer", "open"),
        ("push the red cube", "push"),
        ("push the red ball to the left", "together"),
        ("stack the red ball on the blue cube", "together"),
        ("push the red cube to the left and to the right", "together"),
        ("pick " * 30 + "up the red cube", "at most 18"),
        ("возьми красный куб", "возьми"),
    ],
)
def test_what_was_never_taught_is_refused_with_what_is_known(language, text, hint):
    with pytest.raises(Refused) as refusal:
        language.judge(text)
    assert hint in refusal.value.reason
    assert len(refusal.value.reason) <= 512
    if len(hint) < 20 and "nearest" not in hint:
        assert "I know" in refusal.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "grab the yellow cube",
        "hold up the red can",
        "take the blue cylinder off the table",
        "i want you to pick up the yellow ball",
        "lift the sphere that is red",
        "could you pick up the green ball for me",
        "drop the blue block into the green bowl",
        "in the yellow bowl put the red ball",
        "the green can belongs in the red bowl",
        "bring the red ball to the blue bowl",
        "please place the red cube into the red bowl",
        "set the blue can down on the tray",
        "on the tray put the yellow ball",
        "i want the red block on the tray",
        "move the green ball to the tray",
        "stack the red cube on the blue cube",
        "put the red block on top of the yellow block",
        "on top of the green can put the red cube",
        "the blue cube goes on the red cylinder",
        "i want the red can on top of the blue cube",
        "push the red cube to the left",
        "slide the blue can right",
        "nudge the yellow block forward",
        "could you slide the red cube backwards",
        "away push the red cube",
        "press the button",
        "give the button a push",
        "turn the button on",
        "open the drawer",
        "pull the drawer out",
        "shut the drawer",
        "push the drawer in",
    ],
)
def test_sentences_of_all_six_families_are_taken(language, text):
    language.judge(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("open the red cube", "the {colour}"),
        ("pull the red cube to the left", "to the {side}"),
        ("tap the red cube", "the {colour}"),
        ("press the red cube", "the {colour}"),
        ("move the red cube", "the {colour}"),
        ("give me the red cube", "the {colour}"),
        ("push the red cube up", "push the {colour}"),
        ("push the red ball back", "push the {colour} {flat} {way}"),
        ("lift the bowl", "lift the"),
        ("put the blue bowl in the red cube", "bowl"),
        ("put the drawer in the red bowl", "bowl"),
        ("take the red cube out of the red bowl", "bowl"),
        ("close the green bowl", "close the drawer"),
        ("pick up the tray", "pick up the"),
        ("push the tray forward", "push the {colour} {flat} {way}"),
        ("put the tray on the red cube", "put the"),
        ("stack the red cube on the tray", "on the tray"),
        ("stack the red cube", "the {colour}"),
        ("stack the red cube on the blue cube on the green cube", "stack"),
        ("pick up the button", "pick up the"),
        ("press the blue button", "press the button"),
        ("turn the button off", "turn the button on"),
        ("switch off the button", "switch the button on"),
        ("pull the button out", "pull the drawer out"),
        ("push the button to the left", "push"),
        ("put the red cube on the button", "put the"),
        ("press the drawer", "press the button"),
        ("lift the drawer", "the drawer"),
        ("push the drawer back", "push the drawer"),
        ("push the drawer to the left", "push"),
        ("turn the drawer on", "turn the button on"),
        ("open the drawer and put the red cube in it", "the {colour}"),
        ("pick up the red cube and the green ball", "pick up the"),
    ],
)
def test_known_words_in_a_sentence_never_taught_are_refused_with_the_nearest_one(language, text, nearest):
    with pytest.raises(Refused) as refusal:
        language.judge(text)
    named = refusal.value.reason.split("nearest: '")[1].split("'")[0]
    assert nearest in named
    assert any(named in form.trained for family in tasks.FAMILIES.values() for form in family.forms.values())


def test_a_reason_that_is_too_long_ends_at_a_word(language):
    with pytest.raises(Refused) as refusal:
        language.judge("pick up the red cube and the green ball")
    assert len(refusal.value.reason) <= 500 and refusal.value.reason.endswith((" ...", "."))


def test_a_misspelt_word_is_answered_with_the_nearest_known_one(language):
    with pytest.raises(Refused, match="'cube'"):
        language.judge("pick up the red cubee")


def test_words_become_the_same_ids_in_any_order_of_the_word_list():
    a, b = Tokenizer.of(["red", "cube", "up"], 5), Tokenizer.of(["up", "red", "cube"], 5)
    assert a == b and a.words[:2] == SPECIAL
    ids = a.encode("Red, CUBE kettle")
    assert ids.tolist() == [a.words.index("red"), a.words.index("cube"), UNKNOWN, PAD, PAD]
    assert a.unknown("red kettle") == ["kettle"]


def test_a_vocabulary_with_a_repeated_word_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Tokenizer((*SPECIAL, "red", "red"), 4)


def test_punctuation_and_case_do_not_matter():
    assert split("Pick up the RED cube, please!") == ["pick", "up", "the", "red", "cube", "please"]
