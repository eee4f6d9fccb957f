"""What can be asked on the table-top: things, task families and the ways people phrase them.

Plain data and the functions that turn tasks into words and back. The trainer draws sentences from here, the policy's
vocabulary is made from here; no physics. Left, right, forward and back are the robot's own.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from itertools import product

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
FLAT: tuple[str, ...] = ("cube", "cylinder")  # shapes that stand on each other and do not roll away
DIRECTIONS: dict[str, tuple[float, float]] = {  # x, y of the base frame
    "left": (0.0, 1.0),
    "right": (0.0, -1.0),
    "forward": (1.0, 0.0),
    "back": (-1.0, 0.0),
}
DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left",),
    "right": ("right",),
    "forward": ("forward", "forwards", "away"),
    "back": ("back", "backwards"),
}

# Never in a demonstration: these are for asking how far the policy carries over to what it was not shown. No such
# object is on the table there; an object that lies in such a region (x from, x to, y from, y to [m]) is not named.
# As a distractor that is never meant, a held-out object was learned as one to be left alone (docs/decisions.md).
PAIRS: tuple[tuple[str, str], ...] = tuple(product(COLOURS, SHAPES))
HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = (("green", "cube"), ("yellow", "cylinder"), ("blue", "ball"))
TAUGHT_PAIRS: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
HELD_OUT_REGIONS_M: tuple[tuple[float, float, float, float], ...] = (
    (0.43, 0.48, -0.11, -0.06),
    (0.54, 0.59, 0.05, 0.10),
)


@dataclass(frozen=True)
class Form:
    """One way to ask for a task of a family: for these targets, in these words.

    Slots: {colour} and {shape} (or {flat}) name the object; {target} the colour of the bowl, {colour2} and {flat2} the
    object below, {side} or {way} the direction."""

    targets: tuple[str | None, ...]
    trained: tuple[str, ...]
    heldout: tuple[str, ...]  # about a third, in words that the trained ones have; never trained on


@dataclass(frozen=True)
class Family:
    """A kind of task. `shapes`: of the objects that it is done to; none if it names no object."""

    name: str
    shapes: tuple[str, ...]
    forms: dict[str, Form]  # by a name for refusals and reports

    @property
    def targets(self) -> tuple[str | None, ...]:
        """Every second argument there is, in the order of the codes."""
        return tuple(target for form in self.forms.values() for target in form.targets)

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Trained and held-out ones."""
        return tuple(text for form in self.forms.values() for text in (*form.trained, *form.heldout))

    def form(self, target: str | None) -> Form:
        """The form for a second argument. Raises ValueError where there is none."""
        for form in self.forms.values():
            if target in form.targets:
                return form
        raise ValueError(f"target of {self.name} is {target!r}, allowed: {', '.join(map(str, self.targets))}")


_ALL = (
    Family(
        "pick",
        SHAPES,
        {
            "pick up": Form(
                targets=(None,),
                trained=(
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
                heldout=(
                    "lift the {colour} {shape} up",
                    "please grab the {colour} {shape}",
                    "could you pick up the {colour} {shape} for me",
                    "lift the {colour} {shape} off the table",
                    "grasp the {colour} {shape} and lift it up",
                    "can you take the {colour} {shape}",
                    "i want you to lift the {colour} {shape}",
                    "grab the {shape} that is {colour}",
                    "please get me the {colour} {shape}",
                ),
            ),
        },
    ),
    Family(
        "put",
        SHAPES,
        {
            "put in a bowl": Form(
                targets=tuple(COLOURS),
                trained=(
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
                heldout=(
                    "please drop the {colour} {shape} into the {target} bowl",
                    "could you put the {colour} {shape} into the {target} bowl",
                    "grab the {colour} {shape} and place it in the {target} bowl",
                    "take the {colour} {shape} and put it into the {target} bowl",
                    "bring the {colour} {shape} into the {target} bowl",
                    "in the {target} bowl place the {colour} {shape}",
                    "the {colour} {shape} goes into the {target} bowl",
                    "i want you to drop the {colour} {shape} in the {target} bowl",
                    "pick the {colour} {shape} up and drop it in the {target} bowl",
                ),
            ),
            "put on the tray": Form(
                targets=("tray",),
                trained=(
                    "put the {colour} {shape} on the tray",
                    "put the {colour} {shape} onto the tray",
                    "place the {colour} {shape} on the tray",
                    "set the {colour} {shape} on the tray",
                    "set the {colour} {shape} down on the tray",
                    "move the {colour} {shape} onto the tray",
                    "move the {colour} {shape} to the tray",
                    "bring the {colour} {shape} to the tray",
                    "pick up the {colour} {shape} and put it on the tray",
                    "take the {colour} {shape} and place it on the tray",
                    "the {colour} {shape} goes on the tray",
                    "the {colour} {shape} belongs on the tray",
                    "on the tray put the {colour} {shape}",
                    "please put the {colour} {shape} on the tray",
                    "could you place the {colour} {shape} on the tray",
                    "i want the {colour} {shape} on the tray",
                ),
                heldout=(
                    "place the {colour} {shape} onto the tray",
                    "please set the {colour} {shape} on the tray",
                    "could you put the {colour} {shape} onto the tray",
                    "take the {colour} {shape} and put it on the tray",
                    "on the tray place the {colour} {shape}",
                    "bring the {colour} {shape} onto the tray",
                    "the {colour} {shape} goes onto the tray",
                    "i want you to place the {colour} {shape} on the tray",
                ),
            ),
        },
    ),
    Family(
        "stack",
        FLAT,
        {
            "stack": Form(
                targets=tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, FLAT)),
                trained=(
                    "stack the {colour} {flat} on the {colour2} {flat2}",
                    "stack the {colour} {flat} on top of the {colour2} {flat2}",
                    "stack the {colour} {flat} onto the {colour2} {flat2}",
                    "put the {colour} {flat} on the {colour2} {flat2}",
                    "put the {colour} {flat} on top of the {colour2} {flat2}",
                    "put the {colour} {flat} onto the {colour2} {flat2}",
                    "place the {colour} {flat} on the {colour2} {flat2}",
                    "place the {colour} {flat} on top of the {colour2} {flat2}",
                    "set the {colour} {flat} on the {colour2} {flat2}",
                    "set the {colour} {flat} down on the {colour2} {flat2}",
                    "move the {colour} {flat} onto the {colour2} {flat2}",
                    "balance the {colour} {flat} on the {colour2} {flat2}",
                    "the {colour} {flat} goes on top of the {colour2} {flat2}",
                    "the {colour} {flat} goes on the {colour2} {flat2}",
                    "on top of the {colour2} {flat2} put the {colour} {flat}",
                    "please stack the {colour} {flat} on the {colour2} {flat2}",
                    "could you put the {colour} {flat} on top of the {colour2} {flat2}",
                    "i want the {colour} {flat} on top of the {colour2} {flat2}",
                ),
                heldout=(
                    "place the {colour} {flat} onto the {colour2} {flat2}",
                    "set the {colour} {flat} on top of the {colour2} {flat2}",
                    "balance the {colour} {flat} on top of the {colour2} {flat2}",
                    "please put the {colour} {flat} onto the {colour2} {flat2}",
                    "could you stack the {colour} {flat} on the {colour2} {flat2}",
                    "on top of the {colour2} {flat2} place the {colour} {flat}",
                    "the {colour} {flat} goes onto the {colour2} {flat2}",
                    "i want the {colour} {flat} on the {colour2} {flat2}",
                    "move the {colour} {flat} on top of the {colour2} {flat2}",
                ),
            ),
        },
    ),
    Family(
        "push",
        FLAT,
        {
            "push to a side": Form(
                targets=("left", "right"),
                trained=(
                    "push the {colour} {flat} to the {side}",
                    "push the {colour} {flat} {side}",
                    "push the {colour} {flat} towards the {side}",
                    "push the {colour} {flat} over to the {side}",
                    "slide the {colour} {flat} to the {side}",
                    "slide the {colour} {flat} {side}",
                    "shove the {colour} {flat} to the {side}",
                    "nudge the {colour} {flat} {side}",
                    "shift the {colour} {flat} to the {side}",
                    "please push the {colour} {flat} to the {side}",
                    "could you slide the {colour} {flat} to the {side}",
                    "i want you to push the {colour} {flat} {side}",
                ),
                heldout=(
                    "shove the {colour} {flat} {side}",
                    "nudge the {colour} {flat} to the {side}",
                    "shift the {colour} {flat} over to the {side}",
                    "please slide the {colour} {flat} {side}",
                    "could you push the {colour} {flat} towards the {side}",
                    "i want you to slide the {colour} {flat} to the {side}",
                ),
            ),
            "push forward or back": Form(
                targets=("forward", "back"),
                trained=(
                    "push the {colour} {flat} {way}",
                    "slide the {colour} {flat} {way}",
                    "shove the {colour} {flat} {way}",
                    "nudge the {colour} {flat} {way}",
                    "shift the {colour} {flat} {way}",
                    "{way} push the {colour} {flat}",
                    "please push the {colour} {flat} {way}",
                    "could you slide the {colour} {flat} {way}",
                    "can you push the {colour} {flat} {way} for me",
                    "i want you to push the {colour} {flat} {way}",
                ),
                heldout=(
                    "please slide the {colour} {flat} {way}",
                    "could you push the {colour} {flat} {way}",
                    "can you nudge the {colour} {flat} {way}",
                    "i want you to shove the {colour} {flat} {way}",
                    "please shift the {colour} {flat} {way} for me",
                ),
            ),
        },
    ),
    Family(
        "press",
        (),
        {
            "press the button": Form(
                targets=(None,),
                trained=(
                    "press the button",
                    "push the button",
                    "hit the button",
                    "tap the button",
                    "press down the button",
                    "press the button down",
                    "push the button down",
                    "press down on the button",
                    "push on the button",
                    "switch the button on",
                    "turn the button on",
                    "press on the button",
                    "the button needs a press",
                    "give the button a push",
                    "please press the button",
                    "could you press the button",
                    "can you push the button for me",
                    "i want you to press the button",
                ),
                heldout=(
                    "push down the button",
                    "push down on the button",
                    "please push the button",
                    "could you hit the button",
                    "can you press the button for me",
                    "i want you to push the button down",
                    "give the button a press",
                    "switch on the button",
                    "please tap on the button",
                ),
            ),
        },
    ),
    Family(
        "drawer",
        (),
        {
            "open the drawer": Form(
                targets=("open",),
                trained=(
                    "open the drawer",
                    "open up the drawer",
                    "pull the drawer open",
                    "pull open the drawer",
                    "pull the drawer out",
                    "slide the drawer open",
                    "i want the drawer open",
                    "please open the drawer",
                    "could you open the drawer",
                    "can you pull the drawer open for me",
                ),
                heldout=(
                    "pull out the drawer",
                    "slide open the drawer",
                    "please pull the drawer open",
                    "could you pull the drawer out",
                    "can you open the drawer for me",
                ),
            ),
            "close the drawer": Form(
                targets=("close",),
                trained=(
                    "close the drawer",
                    "shut the drawer",
                    "push the drawer shut",
                    "push the drawer closed",
                    "push the drawer in",
                    "slide the drawer shut",
                    "i want the drawer closed",
                    "please close the drawer",
                    "could you close the drawer",
                    "can you shut the drawer for me",
                ),
                heldout=(
                    "please shut the drawer",
                    "slide the drawer closed",
                    "could you push the drawer shut",
                    "can you close the drawer for me",
                    "i want the drawer shut",
                ),
            ),
        },
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def _words(shapes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for shape in shapes for word in SHAPE_WORDS[shape])


SLOTS: dict[str, tuple[str, ...]] = {  # the words that may stand in a slot
    "colour": tuple(COLOURS),
    "shape": _words(SHAPES),
    "flat": _words(FLAT),
    "target": tuple(COLOURS),
    "colour2": tuple(COLOURS),
    "flat2": _words(FLAT),
    "side": (*DIRECTION_WORDS["left"], *DIRECTION_WORDS["right"]),
    "way": (*DIRECTION_WORDS["forward"], *DIRECTION_WORDS["back"]),
}


@dataclass(frozen=True)
class Task:
    """One concrete thing to do in one scene.

    target: colour of the bowl or "tray" (put), "colour shape" of the object below (stack), direction (push), "open" or
    "close" (drawer)."""

    family: str
    colour: str | None = None
    shape: str | None = None
    target: str | None = None

    @property
    def pair(self) -> tuple[str, str] | None:
        """Colour and shape of the named object, if there is one."""
        return None if self.colour is None or self.shape is None else (self.colour, self.shape)

    @property
    def base(self) -> tuple[str, str] | None:
        """Colour and shape of the object to stack on."""
        if self.family != "stack" or self.target is None:
            return None
        colour, shape = self.target.split()
        return colour, shape

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every object that the sentence names."""
        return tuple(pair for pair in (self.pair, self.base) if pair is not None)

    def codes(self) -> tuple[int, int, int, int]:
        """Family, colour, shape, target (of the family's) as indices, as stored in demonstrations; -1: none."""
        family = FAMILIES[self.family]
        return (
            list(FAMILIES).index(self.family),
            -1 if self.colour is None else list(COLOURS).index(self.colour),
            -1 if self.shape is None else SHAPES.index(self.shape),
            -1 if self.target is None else family.targets.index(self.target),
        )


def from_codes(codes: np.ndarray | tuple[int, ...]) -> Task:
    """Inverse of `Task.codes`."""
    family, colour, shape, target = (int(c) for c in codes)
    kind = list(FAMILIES.values())[family]
    return Task(
        kind.name,
        None if colour < 0 else list(COLOURS)[colour],
        None if shape < 0 else SHAPES[shape],
        None if target < 0 else kind.targets[target],
    )


def fill(template: str, task: Task, rng: np.random.Generator | None = None) -> str:
    """The sentence that `template` makes of `task`; with `rng` in synonyms."""

    def word(choices: tuple[str, ...]) -> str:
        return choices[0] if rng is None else choices[int(rng.integers(len(choices)))]

    slots: dict[str, str | None] = {"colour": task.colour, "target": task.target}
    if task.shape is not None:
        slots["shape"] = slots["flat"] = word(SHAPE_WORDS[task.shape])
    if task.base is not None:
        slots["colour2"], slots["flat2"] = task.base[0], word(SHAPE_WORDS[task.base[1]])
    if task.target in DIRECTIONS:
        slots["side"] = slots["way"] = word(DIRECTION_WORDS[task.target])
    return template.format(**slots)


def slots_of(template: str) -> set[str]:
    """Names of the slots in a template. Raises ValueError where its braces do not match."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def sentence(task: Task, rng: np.random.Generator, heldout: bool = False) -> str:
    """A random phrasing of a task in random synonyms, trained unless `heldout`."""
    form = FAMILIES[task.family].form(task.target)
    templates = form.heldout if heldout else form.trained
    return fill(templates[int(rng.integers(len(templates)))], task, rng)


def all_words() -> set[str]:
    """Every word that any sentence can contain."""
    words = {word for choices in SLOTS.values() for word in choices}
    for family in FAMILIES.values():
        for template in family.phrasings:
            words |= set(re.sub(r"\{\w+\}", " ", template).split())
    return words


def parse(text: str) -> Task | None:
    """The task a sentence names, read word by word, or None. Evaluation judges by it; no policy uses it."""
    words = re.findall(r"[a-z]+", text.lower())
    said = set(words)
    if "drawer" in said or "button" in said:
        return _parse_fixture(said)
    kinds = {word: shape for shape, group in SHAPE_WORDS.items() for word in group}
    colours = [i for i, word in enumerate(words) if word in COLOURS]
    # "can you grab ...": there a can is not a thing
    shapes = [i for i, word in enumerate(words) if word in kinds and words[i + 1 : i + 2] != ["you"]]
    bowls = [i for i, word in enumerate(words) if word == "bowl"]
    own = [i for i in colours if i + 1 not in bowls]
    if len(own) != len(shapes):
        return None
    named = [(words[c], kinds[words[s]]) for c, s in zip(own, shapes, strict=True)]
    if len(named) == 2 and not bowls:
        below = [words[i - 2] in ("on", "onto", "of") for i in own]  # "... on top of the red cube"
        if sum(below) != 1 or not {named[0][1], named[1][1]} <= set(FLAT) or named[0] == named[1]:
            return None
        base, top = named[below.index(True)], named[below.index(False)]
        return Task("stack", *top, " ".join(base))
    if len(named) != 1:
        return None
    colour, shape = named[0]
    if bowls:
        target = next((words[i] for i in colours if i + 1 in bowls), None)
        return None if target is None else Task("put", colour, shape, target)
    if "tray" in said:
        return Task("put", colour, shape, "tray")
    heading = [name for name, choices in DIRECTION_WORDS.items() if said & set(choices)]
    if heading:
        return Task("push", colour, shape, heading[0]) if len(heading) == 1 and shape in FLAT else None
    return Task("pick", colour, shape)


def _parse_fixture(said: set[str]) -> Task | None:
    """A sentence about the button or the drawer."""
    if said & (set(COLOURS) | {"bowl", "tray"}) or {"button", "drawer"} <= said:
        return None
    if "button" in said:
        return Task("press")
    closing = bool(said & {"close", "closed", "shut"}) or "in" in said
    opening = bool(said & {"open", "out", "pull"})
    return None if closing == opening else Task("drawer", target="close" if closing else "open")
