"""The last seconds of all topics in memory, for episodes that turn out to be worth keeping after they have happened."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

NS = 1_000_000_000
OVERHEAD_BYTES = 150  # of a small message in memory: tuple, bytes object and time


class Received(NamedTuple):
    """One serialised message: index of its topic, bytes, ROS time of its receipt [ns]."""

    topic: int
    data: bytes
    log_ns: int


class Ring:
    """Bounded by age and by memory, whichever is reached first. One thread."""

    def __init__(self, span_s: float, bytes_max: int) -> None:
        self._span_ns, self._bytes_max = round(span_s * NS), bytes_max
        self._kept: deque[Received] = deque()
        self.bytes = 0

    def add(self, message: Received) -> None:
        self._kept.append(message)
        self.bytes += len(message.data) + OVERHEAD_BYTES
        oldest_ns = message.log_ns - self._span_ns
        # A clock that was set back must not keep old messages forever: the bound on memory holds all the same.
        while self._kept and (self._kept[0].log_ns < oldest_ns or self.bytes > self._bytes_max):
            self.bytes -= len(self._kept.popleft().data) + OVERHEAD_BYTES

    def last(self, span_s: float) -> list[Received]:
        """Messages of the newest `span_s` seconds; 0: everything."""
        if not self._kept:
            return []
        after_ns = self._kept[-1].log_ns - round(span_s * NS) if span_s > 0.0 else -1
        return [message for message in self._kept if message.log_ns >= after_ns]
