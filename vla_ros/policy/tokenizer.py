"""Words to ids. Word level, closed vocabulary, numpy only: a small policy's sentences use about a hundred words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PAD, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unknown>")


def split(text: str) -> list[str]:
    """Lower-case words of a sentence; punctuation separates and is dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


@dataclass(frozen=True)
class Tokenizer:
    """`words` in the order of their ids, the two special ones first; every sentence becomes `length` ids."""

    words: tuple[str, ...]
    length: int
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[:2] != SPECIAL:
            raise ValueError(f"vocabulary: must start with {SPECIAL}")
        if len(set(self.words)) != len(self.words):
            raise ValueError("vocabulary: a word occurs twice")
        object.__setattr__(self, "_index", {word: i for i, word in enumerate(self.words)})

    @classmethod
    def of(cls, words: Iterable[str], length: int) -> Tokenizer:
        """Ids in alphabetical order, so that they depend on the words alone."""
        return cls(SPECIAL + tuple(sorted(set(words))), length)

    def encode(self, text: str) -> NDArray[np.int64]:
        """(length,) ids; words beyond `length` are dropped (the language check refuses such a sentence first)."""
        ids = np.full(self.length, PAD, dtype=np.int64)
        words = split(text)[: self.length]
        ids[: len(words)] = [self._index.get(word, UNKNOWN) for word in words]
        return ids

    def unknown(self, text: str) -> Sequence[str]:
        """Words of the text that the vocabulary lacks."""
        return [word for word in split(text) if word not in self._index]
