"""Reads numbers and names out of parsed YAML and collects every violation instead of stopping at the first."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from vla_ros.core.errors import Invalid
from vla_ros.core.types import FloatArray


def parse_yaml(text: str) -> object:
    """Raises `Invalid` when the text is not YAML or has a duplicate key."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        duplicate = _duplicate_key(tree)
        content: object = yaml.safe_load(text)
    except (yaml.YAMLError, TypeError, RecursionError) as error:  # TypeError: an unhashable key
        raise Invalid("file", str(error), "YAML") from error
    if duplicate:
        raise Invalid("file", duplicate, "each key once")
    return content


def _duplicate_key(node: Any) -> str:
    """PyYAML keeps the last of two equal keys without a word; a limit given twice must not pass like that."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for (key, value), text in zip(node.value, keys, strict=True):
            if keys.count(text) > 1:
                return f"{text} in line {key.start_mark.line + 1}"
            if found := _duplicate_key(value):
                return found
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            if found := _duplicate_key(value):
                return found
    return ""


class Reader:
    """One section of the file. Every getter returns a usable value of the right type, or NaN, and notes what is wrong.

    NaN makes the positive range checks that follow fail in silence, so relations are only judged by `relation`,
    which skips operands that were already reported.
    """

    def __init__(self, node: object, path: str, violations: list[Invalid]) -> None:
        self.path = path
        self.violations = violations
        self.known: set[str] = set()
        if isinstance(node, dict):
            self.node: dict[Any, Any] = node
        else:
            self.node = {}
            self.fail("", node, "a mapping of keys to values")

    def fail(self, key: str, value: object, allowed: str, remedy: str = "") -> None:
        field = ".".join(part for part in (self.path, key) if part) or "file"
        self.violations.append(Invalid(field, value, allowed, remedy))

    def raw(self, key: str, allowed: str) -> object:
        self.known.add(key)
        if key not in self.node:
            self.fail(key, "missing", allowed)
            return None
        value: object = self.node[key]
        if value is None:
            self.fail(key, "empty", allowed)
        return value

    def section(self, key: str) -> Reader:
        value = self.raw(key, "a section")
        child = Reader({} if value is None else value, f"{self.path}.{key}".strip("."), self.violations)
        if value is None:
            child.violations = []  # the missing section is one violation, not one for each key in it
        return child

    def items(self, key: str, low: int, high: int) -> list[Reader]:
        value = self.raw(key, f"a list of {low} to {high}")
        if value is None:
            return []
        if not isinstance(value, list) or not low <= len(value) <= high:
            self.fail(key, value, f"a list of {low} to {high} entries")
            return []
        return [Reader(item, f"{self.path}.{key}[{i}]".strip("."), self.violations) for i, item in enumerate(value)]

    def number(self, key: str, low: float, high: float, remedy: str = "", above_low: bool = False) -> float:
        """A finite number in [low, high], or in (low, high] with `above_low`."""
        allowed = f"{'more than ' if above_low else ''}{low:g} to {high:g}"
        value = self.raw(key, allowed)
        return math.nan if value is None else self._number(key, value, low, high, allowed, remedy, above_low)

    def numbers(self, key: str, n: int, low: float, high: float, remedy: str = "") -> FloatArray:
        allowed = f"{n} numbers, each {low:g} to {high:g}"
        value = self.raw(key, allowed)
        if value is None:
            return np.full(n, math.nan)
        if not isinstance(value, list) or len(value) != n:
            self.fail(key, value, allowed)
            return np.full(n, math.nan)
        allowed = f"{low:g} to {high:g}"
        return np.array(
            [self._number(f"{key}[{i}]", x, low, high, allowed, remedy, False) for i, x in enumerate(value)]
        )

    def _number(
        self, key: str, value: object, low: float, high: float, allowed: str, remedy: str, above_low: bool
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = "YAML 1.1 reads 1e3 as text, write 1.0e+3" if isinstance(value, str) else ""
            self.fail(key, value, f"a number, {allowed}", hint)
            return math.nan
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):  # first: NaN fails range tests in silence
            self.fail(key, value, f"a finite number, {allowed}")
            return math.nan
        if not (low <= number <= high) or (above_low and not number > low):
            self.fail(key, value, allowed, remedy)
            return math.nan
        return number

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.number(key, low, high)
        if math.isfinite(value) and value != int(value):
            self.fail(key, value, "a whole number")
        return int(value) if math.isfinite(value) else low

    def text(self, key: str, pattern: str, allowed: str) -> str:
        value = self.raw(key, allowed)
        if value is None:
            return ""
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            self.fail(key, value, allowed)
            return ""
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        value = self.raw(key, " or ".join(choices))
        if value is not None and value not in choices:
            self.fail(key, value, " or ".join(choices))
            return ""
        return str(value) if value is not None else ""

    def relation(self, key: str, holds: object, operands: Sequence[float], shown: object, allowed: str) -> None:
        """Check a relation between values, unless one of them was refused before (then it is NaN)."""
        if np.isfinite(np.asarray(operands, dtype=np.float64)).all() and not bool(holds):
            self.fail(key, shown, allowed)

    def finish(self) -> None:
        """A misspelt key would silently leave a bound at nothing, so unknown keys are violations."""
        for key in self.node:
            if key not in self.known:
                self.fail(str(key), self.node[key], f"no such key; known here: {', '.join(sorted(self.known))}")
