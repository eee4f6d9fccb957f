"""What can be asked on the table-top: objects, task families and the ways people phrase them.

Plain data. The trainer draws sentences from here, the policy's vocabulary is made from here; no physics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {  # rgb, 0 to 1
    "red": (0.82, 0.12, 0.10),
    "green": (0.13, 0.60, 0.18),
    "blue": (0.12, 0.28, 0.80),
    "yellow": (0.92, 0.76, 0.10),
}
SHAPES: tuple[str, ...] = ("cube", "cylinder", "ball")
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "cube": ("cube", "block"),
    "cylinder": ("cylinder", "can"),
    "ball": ("ball", "sphere"),
}


@dataclass(frozen=True)
class Family:
    """A kind of task. Templates use {colour}, {shape} and, where `has_target`, {target} (a colour)."""

    name: str
    has_target: bool
    phrasings: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "pick": Family(
        "pick",
        has_target=False,
        phrasings=(
            "pick up the {colour} {shape}",
            "pick the {colour} {shape} up",
            "lift the {colour} {shape}",
            "lift up the {colour} {shape}",
            "grab the {colour} {shape}",
            "grab the {colour} {shape} and lift it",
            "take the {colour} {shape}",
            "take the {colour} {shape} off the table",
            "raise the {colour} {shape}",
            "hold up the {colour} {shape}",
            "grasp the {colour} {shape} and raise it",
            "get the {colour} {shape}",
            "please pick up the {colour} {shape}",
            "could you lift the {colour} {shape}",
            "can you grab the {colour} {shape} for me",
            "i want you to pick up the {colour} {shape}",
            "pick up the {shape} that is {colour}",
            "lift the {shape} that is {colour}",
        ),
    ),
    "put": Family(
        "put",
        has_target=True,
        phrasings=(
            "put the {colour} {shape} in the {target} bowl",
            "put the {colour} {shape} into the {target} bowl",
            "place the {colour} {shape} in the {target} bowl",
            "place the {colour} {shape} into the {target} bowl",
            "drop the {colour} {shape} in the {target} bowl",
            "drop the {colour} {shape} into the {target} bowl",
            "move the {colour} {shape} to the {target} bowl",
            "move the {colour} {shape} into the {target} bowl",
            "pick up the {colour} {shape} and put it in the {target} bowl",
            "grab the {colour} {shape} and drop it in the {target} bowl",
            "take the {colour} {shape} and place it in the {target} bowl",
            "bring the {colour} {shape} to the {target} bowl",
            "the {colour} {shape} goes in the {target} bowl",
            "the {colour} {shape} belongs in the {target} bowl",
            "in the {target} bowl put the {colour} {shape}",
            "please put the {colour} {shape} in the {target} bowl",
            "could you place the {colour} {shape} in the {target} bowl",
            "i want the {colour} {shape} in the {target} bowl",
        ),
    ),
}


@dataclass(frozen=True)
class Task:
    """One concrete thing to do in one scene."""

    family: str
    colour: str
    shape: str
    target: str | None = None  # colour of the bowl

    def codes(self) -> tuple[int, int, int, int]:
        """Family, colour, shape and target colour as indices (-1: none), as stored in demonstrations."""
        colours = list(COLOURS)
        return (
            list(FAMILIES).index(self.family),
            colours.index(self.colour),
            SHAPES.index(self.shape),
            -1 if self.target is None else colours.index(self.target),
        )


def from_codes(codes: np.ndarray | tuple[int, ...]) -> Task:
    """Inverse of `Task.codes`."""
    family, colour, shape, target = (int(c) for c in codes)
    colours = list(COLOURS)
    return Task(list(FAMILIES)[family], colours[colour], SHAPES[shape], None if target < 0 else colours[target])


def fill(template: str, task: Task, shape_word: str | None = None) -> str:
    """The sentence that `template` makes of `task`."""
    return template.format(colour=task.colour, shape=shape_word or task.shape, target=task.target)


def sentence(family: str, colour: str, shape: str, target: str | None, rng: np.random.Generator) -> str:
    """A random phrasing of a task, with a random synonym for its shape."""
    templates = FAMILIES[family].phrasings
    template = templates[int(rng.integers(len(templates)))]
    words = SHAPE_WORDS[shape]
    return fill(template, Task(family, colour, shape, target), words[int(rng.integers(len(words)))])


def all_words() -> set[str]:
    """Every word that any sentence can contain."""
    words = set(COLOURS) | {w for group in SHAPE_WORDS.values() for w in group}
    for family in FAMILIES.values():
        for template in family.phrasings:
            words |= set(re.sub(r"\{\w+\}", " ", template).split())
    return words


def parse(text: str) -> Task | None:
    """The task a sentence names, read word by word, or None. Evaluation judges by it; no policy uses it."""
    words = re.findall(r"[a-z]+", text.lower())
    kinds = {word: shape for shape, group in SHAPE_WORDS.items() for word in group}
    colours = [i for i, word in enumerate(words) if word in COLOURS]
    # "can you grab ...": there a can is not a thing
    shapes = [i for i, word in enumerate(words) if word in kinds and words[i + 1 : i + 2] != ["you"]]
    bowls = [i for i, word in enumerate(words) if word == "bowl"]
    target = next((words[i] for i in colours if i + 1 in bowls), None)
    own = [words[i] for i in colours if i + 1 not in bowls]
    if len(own) != 1 or len(shapes) != 1 or (bowls and target is None):
        return None
    return Task("put" if bowls else "pick", own[0], kinds[words[shapes[0]]], target)
