"""Which sentences the policy was taught. A check in front of the policy: it refuses, it never feeds the model.

A network always answers, also to "wash the car". So a sentence must consist of taught words, name its objects the way
some taught phrasing does, and come close to a taught phrasing. Pure; the lexicon is plain data from the manifest.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from vla_ros.core.errors import Refused
from vla_ros.policy.tokenizer import split

NEAR_ENOUGH = (
    0.6  # similarity with a taught phrasing, 0..1 (difflib's ratio over words, slots as one word each); a choice
)
READINGS_MAX = 64  # of the ambiguous words in one sentence
REASON_MAX = 500  # msg/PolicyStatus allows 512
# Words that carry no task by themselves. A sentence needs one beyond these, and only such as its family was taught.
# fmt: off
FUNCTION_WORDS = frozenset((
    "a", "an", "and", "can", "could", "for", "i", "in", "into", "is", "it", "me", "of", "on", "onto", "please", "side",
    "table", "that", "the", "there", "to", "up", "with", "would", "you",
))
# fmt: on


class Phrases(BaseModel):
    """One task family: its name and taught phrasings, with slots in braces."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=32)
    templates: tuple[str, ...] = Field(min_length=1, max_length=500)


class Lexicon(BaseModel):
    """Everything that may be said. `slots`: kind of slot -> the words that may stand there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    families: tuple[Phrases, ...] = Field(min_length=1, max_length=64)
    slots: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Phrase:
    family: str
    template: str
    words: tuple[str, ...]  # slots as "{kinds}"
    slots: tuple[str, ...]
    action: frozenset[str]  # words that carry the task


@dataclass(frozen=True)
class Complaint:
    similarity: float  # with the nearest taught phrasing
    text: str


class Language:
    def __init__(self, lexicon: Lexicon, words_max: int) -> None:
        self._words_max = words_max
        self._lexicon = lexicon
        # Slots that take the same words (the colour of a cube, the colour of a bowl) look the same in a sentence.
        self._kind = {slot: "{" + "|".join(sorted(words)) + "}" for slot, words in lexicon.slots.items()}
        self._tags: dict[str, tuple[str, ...]] = {}  # what a word may stand for
        for slot, words in lexicon.slots.items():
            for word in words:
                self._tags[word] = tuple(dict.fromkeys((*self._tags.get(word, ()), self._kind[slot])))
        self._phrases = [self._phrase(f.name, t) for f in lexicon.families for t in f.templates]
        self._literal = {w for p in self._phrases for w in p.words if not w.startswith("{")}
        self._known = set(self._tags) | self._literal
        actions = {f.name: [p.action for p in self._phrases if p.family == f.name] for f in lexicon.families}
        self._taught = {name: frozenset().union(*sets) for name, sets in actions.items()}
        # What all phrasings of a family say (the bowl, the drawer) no sentence may leave out.
        self._common = {name: frozenset.intersection(*sets) for name, sets in actions.items()}
        self._things = frozenset().union(*self._common.values())
        # "put the tray on the cube" has every word of "on the tray put the cube": what leads to a thing counts.
        self._leads = {name: {_lead(p.words, t) for p in self._phrases for t in common if p.family == name}
                       for name, common in self._common.items()}  # fmt: skip

    def _phrase(self, family: str, template: str) -> Phrase:
        words: list[str] = []
        for part in re.findall(r"\{\w+\}|[^{}]+", template):
            words += [self._kind[part[1:-1]]] if part.startswith("{") else split(part)
        slots = tuple(w for w in words if w.startswith("{"))
        action = frozenset(w for w in words if not w.startswith("{") and w not in FUNCTION_WORDS)
        return Phrase(family, template, tuple(words), slots, action)

    def summary(self) -> str:
        """What is known, in one line: the first phrasing of each family and the words for its slots."""
        families = "; ".join(f"'{family.templates[0]}'" for family in self._lexicon.families)
        alike: dict[tuple[str, ...], list[str]] = {}
        for slot, words in self._lexicon.slots.items():
            alike.setdefault(words, []).append(f"{{{slot}}}")
        slots = "; ".join(f"{', '.join(names)}: {', '.join(words)}" for words, names in alike.items())
        return f"I know: {families}, with {slots}."

    def judge(self, text: str) -> None:
        """Returns if the sentence was taught or is close to what was; raises Refused with what is known and nearest."""
        words = split(text)
        if not words:
            raise self._refusal("the sentence has no words")
        if len(words) > self._words_max:
            raise self._refusal(f"the sentence has {len(words)} words, at most {self._words_max} fit")
        unknown = [word for word in dict.fromkeys(words) if word not in self._known]
        if unknown:
            hints = []
            for word in unknown[:3]:
                near = difflib.get_close_matches(word, sorted(self._known), n=1, cutoff=0.6)
                hints.append(f"'{word}'" + (f" (nearest: '{near[0]}')" if near else ""))
            raise self._refusal(f"I was not taught the word{'s' if len(unknown) > 1 else ''} {', '.join(hints)}")
        # "can" is a thing and a polite word: a sentence is fine if any reading of such words is.
        readings = itertools.product(*(self._readings(word) for word in words))
        complaints = []
        for reading in itertools.islice(readings, READINGS_MAX):
            complaint = self._complaint(reading)
            if complaint is None:
                return
            complaints.append((complaint.similarity, complaint.text))
        raise self._refusal(max(complaints)[1])

    def _readings(self, word: str) -> tuple[str, ...]:
        return (*self._tags.get(word, ()), *((word,) if word in self._literal else ()))

    def _complaint(self, tags: Sequence[str]) -> Complaint | None:
        """What is wrong with one reading of a sentence, slots as tags; None if nothing."""
        slots = tuple(tag for tag in tags if tag.startswith("{"))
        action = {tag for tag in tags if not tag.startswith("{")} - FUNCTION_WORDS
        if any(p.words == tuple(tags) for p in self._phrases):  # word for word; also the only sentence of its family
            return None
        fitting = [p for p in self._phrases if p.slots == slots]
        if not fitting:
            return self._about(tags, "I was not taught to do something with these things together")
        if action <= self._things:
            return self._about(tags, "the sentence does not say what to do")
        fitting = [p for p in fitting if self._common[p.family] < action <= self._taught[p.family]]
        if not fitting:
            verbs = " ".join(tag for tag in tags if tag in action - self._things)
            return self._about(tags, f"I was not taught to '{verbs}' that")
        fitting = [p for p in fitting if self._leads_as_taught(tags, p)]
        if not fitting:
            return self._about(tags, "I was not taught to do it this way round")
        best, similarity = self._nearest(tags, fitting)
        if not similarity >= NEAR_ENOUGH:
            return Complaint(similarity, f"I do not understand the sentence; nearest: '{best.template}'")
        return None

    def _leads_as_taught(self, tags: Sequence[str], phrase: Phrase) -> bool:
        """Only where something else is named could thing and other change places."""
        leads = {_lead(tags, thing) for thing in self._common[phrase.family]} - FUNCTION_WORDS
        return not phrase.slots or leads <= self._leads[phrase.family]

    def _about(self, tags: Sequence[str], text: str) -> Complaint:
        nearest, similarity = self._nearest(tags, self._phrases)
        return Complaint(similarity, f"{text}; nearest: '{nearest.template}'")

    def _nearest(self, tags: Sequence[str], phrases: Sequence[Phrase]) -> tuple[Phrase, float]:
        scores = [difflib.SequenceMatcher(None, tags, p.words, autojunk=False).ratio() for p in phrases]
        best = max(range(len(phrases)), key=scores.__getitem__)
        return phrases[best], scores[best]

    def _refusal(self, why: str) -> Refused:
        text = f"{why}. {self.summary()}"
        return Refused(text if len(text) <= REASON_MAX else text[: REASON_MAX - 4].rpartition(" ")[0] + " ...")


def _lead(words: Sequence[str], thing: str) -> str:
    """The word that leads to a thing, its article and colour left out: "on" for "on the red bowl"; "" at the front."""
    before = list(words[: words.index(thing)])
    while before and (before[-1] == "the" or before[-1].startswith("{")):
        before.pop()
    return before[-1] if before else ""
