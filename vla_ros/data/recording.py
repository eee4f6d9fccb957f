"""The recorder without ROS: serialised messages in, episodes on disk. Whoever offers messages never waits for the disk.

Two threads. The encoder changes what is not stored as it comes (images); the writer owns the session with its open bag.
Commands travel the same way as messages, so that an episode holds what was offered between its start and its stop. Both
queues are bounded: what finds no room is counted, never waited for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from vla_ros.core.errors import Refused, VlaError
from vla_ros.data.bag_writer import Topic
from vla_ros.data.drops import Drops
from vla_ros.data.episode import Episode
from vla_ros.data.ring import Received
from vla_ros.data.session import Session, Settings, Status

POLL_S = 0.05  # our choice: the writer looks this often; waking it for each message costs more than writing it
ENCODE_MAX = 15  # our choice: frames of one camera that may wait for the encoder, half a second at 30 Hz


@dataclass(frozen=True, slots=True)
class Stream:
    """One recorded topic. `change` makes of each message what is stored (in the encoder's thread; VlaError: dropped and
    counted). `newest`: an episode begins with the newest message of before, as a late subscriber would get it."""

    topic: Topic
    change: Callable[[bytes], bytes] | None = None
    newest: bool = False


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
        self._streams, self._settings, self._failed = tuple(streams), settings, failed
        self._drops = Drops(settings.ring_s)
        self._session = Session([stream.topic for stream in streams], settings, clock_ns, self._drops)
        self._to_encode: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Received, Future with its work, or None: leave
        self._encoding = [0] * len(streams)
        self._to_write: deque[Any] = deque()
        self._lock = threading.Lock()  # of the two counts
        self._queued_bytes = 0
        self._newest: dict[int, Received] = {}
        self._running = False
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
        if not (self._session.accepting or self._settings.ring_s > 0.0):
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
        return self._session.named(self._drops.total())

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
            while self._to_write:
                item = self._to_write.popleft()
                if item is None:
                    self._session.shut("the recorder was stopped")
                    return
                if isinstance(item, Received):
                    with self._lock:
                        self._queued_bytes -= len(item.data)
                    self._session.take(item)
                else:
                    future, work = item
                    self._answer(future, work)
                self._session.flush(time.monotonic())  # also while more comes than can be written
            self._session.flush(time.monotonic())
            time.sleep(POLL_S)

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
            self._session.accepting = False
            self._failed(error)

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
        return self._ask(lambda: self._session.start(name, describe, lambda: list(self._newest.values())))

    def stop(self) -> Future[Status]:
        return self._ask(self._session.stop)

    def keep(self, **changes: Any) -> Future[Status]:
        """Close it if it is open, and give it its name. `changes`: fields of the Episode that are known only now."""
        return self._ask(lambda: self._session.keep(changes))

    def discard(self) -> Future[Status]:
        return self._ask(self._session.discard)

    def last(self, name: str, span_s: float, describe: Callable[[], Episode]) -> Future[Status]:
        """The newest `span_s` seconds of the ring (0: all of it) as a kept episode."""
        return self._ask(lambda: self._session.last(name, span_s, describe))

    def status(self) -> Status:
        """At once, from any thread, whatever the disk does."""
        return self._session.status()

    def _ask(self, work: Callable[[], Status]) -> Future[Status]:
        future: Future[Status] = Future()
        if self._running:
            self._to_encode.put((future, work))
        else:
            future.set_exception(Refused("the recorder is not active"))
        return future
