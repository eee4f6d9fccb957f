"""A running policy changes to a newly installed one: the link is watched, the policy loaded beside the old one, and
taken when no instruction is open. Pure logic: who calls it and on which thread loading runs is the node's affair.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Loaded = TypeVar("Loaded")
Start = Callable[[Callable[[], None]], None]  # runs a function, at once or elsewhere


def in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="load policy", daemon=True).start()


class HotSwap(Generic[Loaded]):
    """`watch` and `take` are called by one thread, or under the caller's lock; loading runs wherever `start` puts it.

    link: the path that the running policy was loaded from; where it is not a link, nothing ever changes.
    load: folder -> policy. May raise anything: the policy that runs goes on, and that folder is not tried again."""

    def __init__(self, link: Path, load: Callable[[Path], Loaded], start: Start = in_background) -> None:
        self._link, self._load, self._start = link, load, start
        self._seen = self._target()
        self._lock = threading.Lock()  # what the loading thread writes
        self._ready: tuple[Path, Loaded] | None = None
        self._problem = ""
        self._loading = False

    def _target(self) -> Path | None:
        return self._link.resolve() if self._link.is_symlink() else None

    @property
    def problem(self) -> str:
        """Why the newest policy is not taken; empty where there is nothing to say."""
        with self._lock:
            return self._problem

    def watch(self) -> None:
        """Look where the link points, and start loading if that is new. Cheap: two system calls."""
        target = self._target()
        with self._lock:
            if target is None or target == self._seen or self._loading:
                return
            self._seen, self._ready, self._problem, self._loading = target, None, "", True
        self._start(lambda: self._fetch(target))

    def _fetch(self, target: Path) -> None:
        ready, problem = None, ""
        try:
            ready = (target, self._load(target))
        except Exception as error:  # noqa: BLE001 whatever is wrong with it, the policy that runs goes on
            problem = f"{target}: not taken, {type(error).__name__}: {error}"
        with self._lock:
            self._ready, self._problem, self._loading = ready, problem, False

    def take(self, idle: bool) -> Loaded | None:
        """The new policy, once; None while there is none or an instruction is open (`idle` False)."""
        with self._lock:
            if not idle or self._ready is None:
                return None
            (target, policy), self._ready = self._ready, None
        # Rolled back while it waited: `watch` will fetch what the link points to now.
        return policy if target == self._target() else None
