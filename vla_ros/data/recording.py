"""The recorder without ROS: serialised messages in, episodes on disk. Whoever offers messages never waits for the disk.

Two threads. The encoder changes what is not stored as it comes (images); the writer owns the ring and the open bag.
Commands travel the same way as messages, so that an episode holds what was offered between its start and its stop. Both
queues are bounded: what finds no room is counted, never waited for.
"""

from __future__ import annotations

import dataclasses
import enum
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ros.core.errors import Invalid, Refused, VlaError
from vla_ros.data import episode as episodes
from vla_ros.data.bag_writer import BagWriter, Topic, require_absent
from vla_ros.data.disk import require_free
from vla_ros.data.episode import Episode
from vla_ros.data.ring import NS, Received, Ring

FLUSH_S = 0.4  # a kill loses at most this, the writer's period and the encoder's queue: below 0.6 s
POLL_S = 0.05  # our choice: the writer looks this often; waking it for each message costs more than writing it
ENCODE_MAX = 8  # our choice: frames of one camera that may wait for the encoder, a quarter of a second at 30 Hz
DISK_CHECK_S = 1.0


class State(enum.IntEnum):  # as in srv/Record
    IDLE = 0
    RECORDING = 1
    WAITING = 2


@dataclass(frozen=True, slots=True)
class Stream:
    """One recorded topic. `change` makes of each message what is stored (in the encoder's thread; VlaError: dropped and
    counted). `newest`: an episode begins with the newest message of before, as a late subscriber would get it."""

    topic: Topic
    change: Callable[[bytes], bytes] | None = None
    newest: bool = False


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


class Drops:
    """Messages lost, by topic and by second. Several threads."""

    def __init__(self, span_s: float) -> None:
        self._lock = threading.Lock()
        self._total: Counter[int] = Counter()
        self._seconds: deque[tuple[float, Counter[int]]] = deque(maxlen=max(round(span_s) + 1, 2))

    def add(self, topic: int, n: int, now_s: float) -> None:
        with self._lock:
            self._total[topic] += n
            if not self._seconds or now_s - self._seconds[-1][0] >= 1.0:
                self._seconds.append((now_s, Counter()))
            self._seconds[-1][1][topic] += n

    def total(self) -> Counter[int]:
        with self._lock:
            return self._total.copy()

    def since(self, at_s: float) -> Counter[int]:
        """To the second, and not longer ago than the span."""
        with self._lock:
            return sum((count for begun_s, count in self._seconds if begun_s >= at_s - 1.0), Counter())


@dataclass
class _Open:
    """The episode that is being written, or waits to be kept."""

    bag: BagWriter
    describe: Callable[[], Episode]
    started_s: float
    drops_before: Counter[int]
    flushed_s: float
    episode: Episode | None = None  # once closed


class Recording:
    """`clock_ns` is ROS time. `failed` is called once, from a thread of ours, after a defect."""

    def __init__(
        self,
        streams: Sequence[Stream],
        settings: Settings,
        clock_ns: Callable[[], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        settings.validate()
        self._streams, self._settings, self._clock_ns, self._failed = tuple(streams), settings, clock_ns, failed
        self._topics = [stream.topic for stream in streams]
        self._drops = Drops(settings.ring_s)
        self._to_encode: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Received, Future with its work, or None: leave
        self._encoding = [0] * len(streams)
        self._to_write: deque[Any] = deque()
        self._lock = threading.Lock()  # of the two counts
        self._queued_bytes = 0
        self._newest: dict[int, Received] = {}
        self._ring = Ring(settings.ring_s, settings.ring_max_bytes) if settings.ring_s > 0.0 else None
        self._open: _Open | None = None
        self._note = ""
        self._running = self._recording = False
        self._checked_s = 0.0
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("encoder", self._encode), ("writer", self._write))
        ]

    # ------------------------------------------------------------------------------------------ messages

    def offer(self, topic: int, data: bytes, log_ns: int) -> None:
        """From one thread. Takes microseconds; nothing in here waits."""
        message = Received(topic, data, log_ns)
        stream = self._streams[topic]
        if stream.newest:
            self._newest[topic] = message
        if not (self._recording or self._ring is not None):
            return
        if stream.change is None:
            self._post(message)
        elif self._encoding[topic] >= ENCODE_MAX:
            self._drops.add(topic, 1, time.monotonic())
        else:
            with self._lock:
                self._encoding[topic] += 1
            self._to_encode.put(message)

    def lost(self, topic: int, n: int) -> None:
        """The middleware had no room for so many messages: they never came here."""
        self._drops.add(topic, n, time.monotonic())

    def drops(self) -> dict[str, int]:
        """By topic, since the start of this object."""
        return self._named(self._drops.total())

    @property
    def waiting_bytes(self) -> int:
        """What has been taken and is not in the file yet."""
        return self._queued_bytes

    def newest(self, topic: int) -> bytes | None:
        message = self._newest.get(topic)
        return None if message is None else message.data

    def _post(self, message: Received) -> None:
        with self._lock:
            room = self._queued_bytes + len(message.data) <= self._settings.queue_max_bytes
            if room:
                self._queued_bytes += len(message.data)
        if room:
            self._to_write.append(message)
        else:
            self._drops.add(message.topic, 1, time.monotonic())

    def _encode(self) -> None:
        while True:
            item = self._to_encode.get()
            if not isinstance(item, Received):
                self._to_write.append(item)
                if item is None:
                    return
                continue
            change = self._streams[item.topic].change
            assert change is not None
            try:
                self._post(item._replace(data=change(item.data)))
            except VlaError:
                self._drops.add(item.topic, 1, time.monotonic())
            finally:
                with self._lock:
                    self._encoding[item.topic] -= 1

    # ------------------------------------------------------------------------------------------ the writer's thread

    def _write(self) -> None:
        while True:
            now_s = time.monotonic()
            while self._to_write:
                item = self._to_write.popleft()
                if item is None:
                    self._shut("the recorder was stopped")
                    return
                if isinstance(item, Received):
                    self._take(item)
                else:
                    future, work = item
                    self._answer(future, work)
            self._flush(now_s)
            time.sleep(POLL_S)

    def _take(self, message: Received) -> None:
        with self._lock:
            self._queued_bytes -= len(message.data)
        if self._ring is not None:
            self._ring.add(message)
        if self._open is not None and self._open.episode is None:
            try:
                self._open.bag.write(message.topic, message.data, message.log_ns)
            except OSError as error:
                self._close_early(f"the disk refused to be written: {error}")

    def _flush(self, now_s: float) -> None:
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

    def _close(self, why: str = "") -> None:
        """The open bag becomes a complete one that waits to be kept; where the disk takes not even that, it is left for
        `vla bag recover`."""
        opened = self._open
        if opened is None or opened.episode is not None:
            return
        self._recording = False
        lost = self._drops.total() - opened.drops_before
        episode = dataclasses.replace(
            opened.describe(),
            closed=episodes.one_line(why, episodes.REASON_MAX),
            recorded_s=round(time.monotonic() - opened.started_s, 3),
            drops=self._named(lost),
        )
        try:
            opened.bag.close(episode)
        except OSError as error:
            opened.bag.abandon()
            self._open = None
            self._note = f"{opened.bag.folder} is not complete ({error}): `vla bag recover` reads what is in it"
        else:
            opened.episode = episode

    def _shut(self, why: str) -> None:
        """The process ends: nothing that was recorded is lost."""
        if self._open is not None and self._open.episode is None:
            self._close(why)
            if self._open is not None and self._open.episode is not None:
                self._open.bag.keep(self._open.episode)
                self._open = None

    def _answer(self, future: Future[Status], work: Callable[[], Status]) -> None:
        try:
            future.set_result(work())
        except (VlaError, OSError) as error:
            future.set_exception(error if isinstance(error, VlaError) else Refused(str(error)))
        except BaseException as error:
            future.set_exception(error)
            raise

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 a defect: told, and the node falls silent
            self._recording = False
            self._failed(error)

    def _named(self, counts: Counter[int]) -> dict[str, int]:
        return {self._topics[topic].name: n for topic, n in sorted(counts.items()) if n > 0}

    # ------------------------------------------------------------------------------------------ commands

    def begin(self) -> None:
        self._running = True
        for thread in self._threads:
            thread.start()

    def end(self, timeout_s: float = 5.0) -> None:
        """Close and keep what is open, then stop the threads."""
        if self._running:
            self._running = False
            self._to_encode.put(None)
            if threading.current_thread() not in self._threads:  # not after a defect in one of them
                self._threads[1].join(timeout_s)

    def start(self, name: str, describe: Callable[[], Episode]) -> Future[Status]:
        """A new episode. `describe` tells, when it is closed, what is known about it; from the writer's thread."""
        return self._ask(lambda: self._start(name, describe))

    def stop(self) -> Future[Status]:
        return self._ask(self._stop)

    def keep(self, **changes: Any) -> Future[Status]:
        """Close it if it is open, and give it its name. `changes`: fields of the Episode that are known only now."""
        return self._ask(lambda: self._keep(changes))

    def discard(self) -> Future[Status]:
        return self._ask(self._discard)

    def last(self, name: str, span_s: float, describe: Callable[[], Episode]) -> Future[Status]:
        """The newest `span_s` seconds of the ring (0: all of it) as a kept episode."""
        return self._ask(lambda: self._last(name, span_s, describe))

    def _ask(self, work: Callable[[], Status]) -> Future[Status]:
        future: Future[Status] = Future()
        if self._running:
            self._to_encode.put((future, work))
        else:
            future.set_exception(Refused("the recorder is not active"))
        return future

    def _start(self, name: str, describe: Callable[[], Episode]) -> Status:
        if self._open is not None:
            done = "is being recorded" if self._open.episode is None else "waits"
            raise Refused(f"{self._open.bag.name} {done}: keep or discard it first")
        self._note = ""
        now_s = time.monotonic()
        bag = self._new_bag(name, describe())
        self._open = _Open(bag, describe, now_s, self._drops.total(), now_s)
        self._recording = True
        start_ns = self._clock_ns()
        for message in list(self._newest.values()):
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

    def _stop(self) -> Status:
        if self._open is None:
            raise Refused(self._note or "nothing is being recorded")
        self._close()
        return self.status()

    def _keep(self, changes: dict[str, Any]) -> Status:
        self._stop()
        opened = self._open
        if opened is None or opened.episode is None:
            raise Refused(self._note)
        opened.bag.keep(dataclasses.replace(opened.episode, **changes))
        status = self.status()
        self._open = None
        return dataclasses.replace(status, state=State.IDLE)

    def _discard(self) -> Status:
        self._stop()
        if self._open is None:
            raise Refused(self._note)
        status = self.status()
        self._open.bag.discard()
        self._open = None
        return dataclasses.replace(status, state=State.IDLE, folder=None)

    def _last(self, name: str, span_s: float, describe: Callable[[], Episode]) -> Status:
        if self._ring is None:
            raise Refused("nothing is kept in memory: the recorder's parameter ring_s is 0")
        if not 0.0 <= span_s <= self._settings.ring_s:
            raise Invalid("seconds", span_s, f"0 (all) to ring_s = {self._settings.ring_s:g} [s]")
        messages = self._ring.last(span_s)
        if not messages:
            raise Refused("nothing has been received yet")
        duration_s = (messages[-1].log_ns - messages[0].log_ns) / NS
        lost = self._named(self._drops.since(time.monotonic() - duration_s))
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
