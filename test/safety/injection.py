"""Faults as data: six verbs on one stream of camera frames, chunks, joint samples, clock readings or commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

VERBS = ("off", "stuck", "garbage", "delayed", "slow", "intermittent")
TARGETS = ("camera", "policy", "joints", "clock", "bus")


@dataclass(frozen=True)
class Injection:
    """`amount`: seconds for delayed, every n-th item for slow, probability of loss for intermittent."""

    verb: str
    target: str
    start_s: float = 0.0  # after the moment it is injected
    duration_s: float = 1e9
    seed: int = 0
    amount: float = 0.0

    def __post_init__(self) -> None:
        assert self.verb in VERBS and self.target in TARGETS, self


class Stream:
    """Stands where an item is handed on, and hands on what the injection leaves of it: none, one or several."""

    def __init__(
        self,
        injection: Injection,
        now_s: float,
        refresh: Callable[[Any, Any], Any],
        corrupt: Callable[[Any, np.random.Generator], Any],
    ) -> None:
        """`refresh(old, new)`: the old content as if it were new. `corrupt(item, rng)`: what garbage looks like."""
        self._injection = injection
        self._from_s, self._to_s = now_s + injection.start_s, now_s + injection.start_s + injection.duration_s
        self._refresh, self._corrupt = refresh, corrupt
        self._rng = np.random.default_rng(injection.seed)
        self._last: Any = None
        self._late: list[tuple[float, Any]] = []
        self._count = 0

    def __call__(self, now_s: float, item: Any) -> list[Any]:
        out = [late for due_s, late in self._late if due_s <= now_s]
        self._late = [(due_s, late) for due_s, late in self._late if due_s > now_s]
        if not self._from_s <= now_s < self._to_s:
            self._last = item
            return [*out, item]
        verb, amount = self._injection.verb, self._injection.amount
        self._count += 1
        if verb == "stuck":
            self._last = item if self._last is None else self._last
            out.append(self._refresh(self._last, item))
        elif verb == "garbage":
            out.append(self._corrupt(item, self._rng))
        elif verb == "delayed":
            self._late.append((now_s + amount, item))
        elif (verb == "slow" and self._count % round(amount) == 0) or (
            verb == "intermittent" and self._rng.random() >= amount
        ):
            out.append(item)
        return out
