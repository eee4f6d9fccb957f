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
    families = tuple(Phrases(name=f.name, templates=f.phrasings) for f in tasks.FAMILIES.values())
    shapes = tuple(w for words in tasks.SHAPE_WORDS.values() for w in words)
    return Language(
        Lexicon(
            families=families, slots={"colour": tuple(tasks.COLOURS), "shape": shapes, "target": tuple(tasks.COLOURS)}
        ),
        18,
    )


def test_every_taught_sentence_is_taken(language):
    rng = np.random.default_rng(0)
    for family in tasks.FAMILIES.values():
        for template in family.phrasings:
            for shape in tasks.SHAPES:
                for word in tasks.SHAPE_WORDS[shape]:
                    colour, target = rng.choice(list(tasks.COLOURS), 2)
                    language.judge(tasks.fill(template, tasks.Task(family.name, colour, shape, target), word))


@pytest.mark.parametrize(
    "text",
    [
        "Pick up the RED cube!",
        "please lift the blue ball",
        "could you grab the green can for me",
        "put the red block into the yellow bowl, please",
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
