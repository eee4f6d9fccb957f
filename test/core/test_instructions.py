"""Which text is taken (fault D8), and which instruction is open."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_ros.core.errors import Refused
from vla_ros.core.instructions import MODE_QUEUE, MODE_REPLACE, TEXT_MAX, InstructionBook, normalise_text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("x" * 257, "too long"),
        (b"y" * 5_000_000, "too long"),
        ("two\nlines", "not printable"),
        ("bell\x07", "not printable"),
        ("\u202egnirts", "not printable"),  # right-to-left override
        ("a\u2066b", "not printable"),
        ("zero\u200bwidth", "not printable"),
        (b"\xff\xfe", "not UTF-8"),
        ("\ud800", "not printable"),
    ],
)
def test_text_is_refused_whole_with_the_reason(text: str | bytes, part: str) -> None:
    with pytest.raises(Refused, match=part):
        normalise_text(text)


@pytest.mark.parametrize("text", ["pick up the red cube", "hebe den Würfel auf", "拿起红色方块", "e\u0301", b"ok"])
def test_plain_sentences_of_any_script_are_taken(text: str | bytes) -> None:
    assert normalise_text(text)


@given(st.one_of(st.text(max_size=300), st.binary(max_size=1200)))
def test_what_is_taken_is_one_printable_line_in_nfc_and_taking_it_again_changes_nothing(text: str | bytes) -> None:
    try:
        clean = normalise_text(text)
    except Refused as refusal:
        assert refusal.reason
        return
    assert 1 <= len(clean) <= TEXT_MAX and len(clean.splitlines()) == 1
    assert all(c == " " or c.isprintable() for c in clean)
    assert unicodedata.is_normalized("NFC", clean) and normalise_text(clean) == clean


def opened(text: str = "pick up the red cube") -> InstructionBook:
    book = InstructionBook()
    book.request(0.0, "a", text, MODE_REPLACE)
    book.verdict(1, True, "")
    book.take()
    return book


def test_an_instruction_opens_only_when_the_policy_accepts_it() -> None:
    book = InstructionBook()
    book.request(0.0, "a", "pick up the red cube", MODE_REPLACE)
    assert book.open_id == 0 and book.take() == ((), (1, "pick up the red cube"))
    assert book.verdict(1, True, "")
    replies, _ = book.take()
    assert book.open_id == 1 and replies[0].accepted and replies[0].instruction_id == 1


def test_a_refused_instruction_leaves_the_open_one_alone_and_says_why() -> None:
    book = opened()
    book.request(1.0, "b", "fly to the moon", MODE_REPLACE)
    assert not book.verdict(2, False, "unknown verb: fly; known: pick, put")
    replies, _ = book.take()
    assert book.open_id == 1 and not replies[0].accepted and "known: pick" in replies[0].reason


def test_silence_of_the_policy_for_two_seconds_is_a_refusal() -> None:
    book = opened()
    book.request(1.0, "b", "put it down", MODE_REPLACE)
    book.tick(2.99)
    assert book.pending
    book.tick(3.0)
    replies, publish = book.take()
    assert not book.pending and book.open_id == 1 and not replies[0].accepted
    assert publish == (1, "pick up the red cube")  # a late policy must not go on with the refused text


def test_a_late_verdict_changes_nothing() -> None:
    book = opened()
    book.request(1.0, "b", "put it down", MODE_REPLACE)
    book.tick(3.5)
    assert not book.verdict(2, True, "") and book.open_id == 1


def test_queued_instructions_start_one_after_the_other() -> None:
    book = opened()
    book.request(1.0, "b", "put it down", MODE_QUEUE)
    assert book.take()[0][0].accepted and book.open_id == 1
    book.finish(5.0)
    assert book.take()[1] == (2, "put it down") and book.open_id == 0
    assert book.verdict(2, True, "") and book.open_text == "put it down"


def test_a_cancel_forgets_the_queue_and_refuses_what_is_pending() -> None:
    book = opened()
    book.request(1.0, "b", "put it down", MODE_QUEUE)
    book.request(1.0, "c", "go on", MODE_REPLACE)
    book.take()
    book.close()
    replies, publish = book.take()
    assert publish == (0, "") and not replies[0].accepted and book.open_id == 0
    book.close()
    assert book.take() == ((), None)


def test_a_restarted_policy_that_no_longer_knows_the_open_text_closes_it() -> None:
    book = opened()
    assert book.verdict(1, False, "unknown") and book.open_id == 0
