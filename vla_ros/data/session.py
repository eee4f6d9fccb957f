"""The open episode: begun, written, closed early when the disk says so, kept or discarded; and those from memory.

One thread (the writer's of `recording.py`); only `status` and `accepting` are for any.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ros.core.errors import Invalid, Refused, VlaError
from vla_ros.data import episode as episodes
from vla_ros.data.bag_writer import BagWriter, Topic, require_absent
from vla_ros.data.disk import require_free
from vla_ros.data.drops import Drops
from vla_ros.data.episode import Episode, State
from vla_ros.data.ring import NS, Received, Ring

FLUSH_S = 0.4  # a kill loses at most this, the writer's period and the encoder's queue: below 0.6 s
DISK_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    folder: Path
    free_min_bytes: int = 500_000_000  # our choice
    ring_s: float = 0.0
    ring_max_bytes: int = 256_000_000
    queue_max_bytes: int = 64_000_000  # our choice: ten seconds of two compressed VGA cameras while the disk stalls

    def validate(self) -> None:
        if not 0 <= self.free_min_bytes <= 1 << 50:
            raise Invalid("free_min_mb", self.free_min_bytes / 1e6, "0 to 1e9")
        if not 0.0 <= self.ring_s <= 600.0:
            raise Invalid("ring_s", self.ring_s, "0 (no ring) to 600 [s]")
        for name, value in (("ring_max_mb", self.ring_max_bytes), ("queue_max_mb", self.queue_max_bytes)):
            if not 1_000_000 <= value <= 1 << 36:
                raise Invalid(name, value / 1e6, "1 to 68,719 [MB]")


@dataclass(frozen=True, slots=True)
class Status:
    """After a command. `folder` is the episode that it was about; `note` is what a person should know about it."""

    state: State
    folder: Path | None = None
    note: str = ""
    duration_s: float = 0.0
    messages: int = 0
    drops: int = 0
    size_bytes: int = 0


@dataclass
class _Open:
    """The episode that is being written, or waits to be kept."""

    bag: BagWriter
    describe: Callable[[], Episode]
    started_s: float
    drops_before: Counter[int]
    flushed_s: float
    episode: Episode | None = None  # once closed


class Session:
    """At most one episode is open; what `take` gets also goes into the ring. `clock_ns` is ROS time."""

    def __init__(self, topics: Sequence[Topic], settings: Settings, clock_ns: Callable[[], int], drops: Drops) -> None:
        self._topics, self._settings, self._clock_ns, self._drops = tuple(topics), settings, clock_ns, drops
        self._ring = Ring(settings.ring_s, settings.ring_max_bytes) if settings.ring_s > 0.0 else None
        self._open: _Open | None = None
        self._note = ""
        self._checked_s = 0.0
        self.accepting = False  # an episode takes messages

    # ------------------------------------------------------------------------------------------ messages

    def take(self, message: Received) -> None:
        if self._ring is not None:
            self._ring.add(message)
        if self._open is not None and self._open.episode is None:
            try:
                self._open.bag.write(message.topic, message.data, message.log_ns)
            except OSError as error:
                self._close_early(f"the disk refused to be written: {error}")

    def flush(self, now_s: float) -> None:
        opened = self._open
        if opened is None or opened.episode is not None or now_s - opened.flushed_s < FLUSH_S:
            return
        opened.flushed_s = now_s
        try:
            opened.bag.flush()
            if opened.bag.full:
                self._close_early("the disk is full")
            elif now_s - self._checked_s >= DISK_CHECK_S:
                self._checked_s = now_s
                require_free(opened.bag.folder, self._settings.free_min_bytes)
        except Invalid as error:
            self._close_early(str(error))
        except OSError as error:
            self._close_early(f"the disk refused to be written: {error}")

    def _close_early(self, why: str) -> None:
        assert self._open is not None
        self._note = f"{self._open.bag.name} was closed early: {why}"
        self._close(why)

    def _close(self, why: str = "") -> Episode | None:
        """The open bag becomes a complete one that waits to be kept; where the disk takes not even that, it is left for
        `vla bag recover`. Returns what is known of the episode that this has closed, if it has."""
        opened = self._open
        if opened is None or opened.episode is not None:
            return None
        self.accepting = False
        lost = self._drops.total() - opened.drops_before
        episode = dataclasses.replace(
            opened.describe(),
            closed=episodes.one_line(why, episodes.REASON_MAX),
            recorded_s=round(time.monotonic() - opened.started_s, 3),
            drops=self.named(lost),
        )
        try:
            opened.bag.close(episode)
        except OSError as error:
            opened.bag.abandon()
            self._open = None
            self._note = f"{opened.bag.folder} is not complete ({error}): `vla bag recover` reads what is in it"
            return None
        opened.episode = episode
        return episode

    def shut(self, why: str) -> None:
        """The process ends: nothing that was recorded is lost."""
        opened, episode = self._open, self._close(why)
        if opened is not None and episode is not None:
            opened.bag.keep(episode)
            self._open = None

    def named(self, counts: Counter[int]) -> dict[str, int]:
        return {self._topics[topic].name: n for topic, n in sorted(counts.items()) if n > 0}

    # ------------------------------------------------------------------------------------------ commands

    def start(self, name: str, describe: Callable[[], Episode], newest: Callable[[], Iterable[Received]]) -> Status:
        """A new episode. `describe` tells, when it is closed, what is known about it; it begins with `newest`, which is
        asked once messages are taken: nothing falls between the two."""
        if self._open is not None:
            done = "is being recorded" if self._open.episode is None else "waits"
            raise Refused(f"{self._open.bag.name} {done}: keep or discard it first")
        self._note = ""
        now_s = time.monotonic()
        bag = self._new_bag(name, describe())
        self._open = _Open(bag, describe, now_s, self._drops.total(), now_s)
        self.accepting = True
        start_ns = self._clock_ns()
        for message in newest():
            bag.write(message.topic, message.data, start_ns)
        return self.status()

    def _new_bag(self, name: str, episode: Episode) -> BagWriter:
        folder = self._settings.folder
        folder.mkdir(parents=True, exist_ok=True)
        require_free(folder, self._settings.free_min_bytes)
        name = name or self._fresh_name(episode.text)
        return BagWriter(folder, name, self._topics, episode)

    def _fresh_name(self, text: str) -> str:
        """From time (UTC) and text; a number more when the second has one already."""
        words = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60].strip("_")
        stem = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._clock_ns() / NS)) + (f"_{words}" if words else "")
        for n in range(1, 100):
            name = stem if n == 1 else f"{stem}_{n}"
            try:
                require_absent(self._settings.folder / name, self._settings.folder / f"{name}{episodes.PART}")
            except Invalid:
                continue
            return name
        raise Refused(f"{self._settings.folder} has 99 episodes named {stem}")

    def stop(self) -> Status:
        if self._open is None:
            raise Refused(self._note or "nothing is being recorded")
        self._close()
        return self.status()

    def keep(self, changes: dict[str, Any]) -> Status:
        self.stop()
        opened = self._open
        if opened is None or opened.episode is None:
            raise Refused(self._note)
        opened.bag.keep(dataclasses.replace(opened.episode, **changes))
        status = self.status()
        self._open = None
        return dataclasses.replace(status, state=State.IDLE)

    def discard(self) -> Status:
        self.stop()
        if self._open is None:
            raise Refused(self._note)
        status = self.status()
        self._open.bag.discard()
        self._open = None
        return dataclasses.replace(status, state=State.IDLE, folder=None)

    def last(self, name: str, span_s: float, describe: Callable[[], Episode]) -> Status:
        if self._ring is None:
            raise Refused("nothing is kept in memory: the recorder's parameter ring_s is 0")
        if not 0.0 <= span_s <= self._settings.ring_s:
            raise Invalid("seconds", span_s, f"0 (all) to ring_s = {self._settings.ring_s:g} [s]")
        messages = self._ring.last(span_s)
        if not messages:
            raise Refused("nothing has been received yet")
        duration_s = (messages[-1].log_ns - messages[0].log_ns) / NS
        lost = self.named(self._drops.since(time.monotonic() - duration_s))
        bag = self._new_bag(name, describe())
        try:
            for message in messages:
                bag.write(message.topic, message.data, message.log_ns)
            episode = dataclasses.replace(describe(), recorded_s=max(round(duration_s, 3), 0.0), drops=lost)
            bag.close(episode)
            if bag.full:
                raise Refused("the disk is full")
            folder = bag.keep(episode)
        except (VlaError, OSError):
            bag.discard()
            raise
        return dataclasses.replace(
            self.status(), folder=folder, duration_s=duration_s, messages=bag.span.messages,
            drops=sum(lost.values()), size_bytes=bag.size_bytes,
        )  # fmt: skip

    def status(self) -> Status:
        """At once, from any thread, whatever the disk does."""
        opened = self._open
        if opened is None:
            return Status(State.IDLE, note=self._note)
        lost = self._drops.total() - opened.drops_before
        return Status(
            State.RECORDING if opened.episode is None else State.WAITING,
            opened.bag.folder,
            self._note,
            time.monotonic() - opened.started_s if opened.episode is None else opened.episode.recorded_s,
            opened.bag.span.messages,
            sum(lost.values()) if opened.episode is None else sum(opened.episode.drops.values()),
            opened.bag.size_bytes,
        )
