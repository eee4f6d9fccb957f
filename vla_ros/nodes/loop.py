"""A control loop of its own: one thread on absolute deadlines, which an event may wake early.

rclpy timers lose about a fifth of their ticks beside a 30 ms callback, so nothing that moves an arm hangs on one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_ros.nodes.figures import LATENESS_EDGES_MS, lateness_bin

LOOP_PRIORITY = 20  # our choice: above ordinary threads, below the kernel's own
WINDOW_TICKS = 1000  # our choice: ten seconds at 100 Hz


@dataclass(frozen=True)
class LoopStats:
    """Ticks since the start, and of the last `WINDOW_TICKS` the delay behind their deadlines."""

    ticks: int
    late_ticks: int  # more than one period behind, skipped deadlines included
    rate_hz: float
    delay_p50_s: float
    delay_p99_s: float
    delay_max_s: float
    busy_p99_s: float
    lateness: tuple[int, ...]  # ticks in each bin of `figures.LATENESS_EDGES_MS`, since the start


class ControlLoop:
    """Calls `tick(now)` every period on the steady clock. `wake()` from any thread adds a tick at once."""

    def __init__(
        self, name: str, period_s: float, tick: Callable[[float], None], failed: Callable[[BaseException], None]
    ) -> None:
        if not period_s > 0.0:
            raise ValueError(f"period_s is {period_s!r}, allowed: > 0")
        self._name, self._period_s, self._tick, self._failed = name, period_s, tick, failed
        self._condition = threading.Condition()
        self._woken = False
        self._running = False
        self._thread: threading.Thread | None = None
        self.realtime = False
        self._ticks = 0
        self._late = 0
        self._recorded = 0
        self._starts = np.zeros(WINDOW_TICKS)
        self._delays = np.zeros(WINDOW_TICKS)
        self._busy = np.zeros(WINDOW_TICKS)
        self._lateness = [0] * (len(LATENESS_EDGES_MS) + 1)

    def start(self) -> None:
        self._running = True
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the last tick is over. Not to be called from the tick itself."""
        with self._condition:
            self._running = False
            self._condition.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)
        self._thread = None

    def wake(self) -> None:
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def stats(self) -> LoopStats:
        n = min(self._recorded, WINDOW_TICKS)
        if n < 2:
            return LoopStats(self._ticks, self._late, 0.0, 0.0, 0.0, 0.0, 0.0, tuple(self._lateness))
        delays, busy = self._delays[:n], self._busy[:n]
        span_s = float(self._starts[:n].max() - self._starts[:n].min())
        p50, p99 = np.percentile(delays, (50.0, 99.0))
        return LoopStats(
            ticks=self._ticks,
            late_ticks=self._late,
            rate_hz=(n - 1) / span_s if span_s > 0.0 else 0.0,
            delay_p50_s=float(p50),
            delay_p99_s=float(p99),
            delay_max_s=float(delays.max()),
            busy_p99_s=float(np.percentile(busy, 99.0)),
            lateness=tuple(self._lateness),
        )

    def _run(self) -> None:
        self.realtime = prefer_this_thread()
        deadline_s = time.monotonic()
        while True:
            on_time = self._wait_until(deadline_s)
            if not self._running:
                return
            start_s = time.monotonic()
            try:
                self._tick(start_s)
            except BaseException as error:  # noqa: BLE001 a silent loop is what the next link in the chain detects
                self._running = False
                self._failed(error)
                return
            if on_time:
                deadline_s = self._account(deadline_s, start_s, time.monotonic())

    def _wait_until(self, deadline_s: float) -> bool:
        """True at the deadline, False when woken before it."""
        with self._condition:
            while self._running:
                if self._woken:
                    self._woken = False
                    return False
                left_s = deadline_s - time.monotonic()
                if left_s <= 0.0:
                    return True
                self._condition.wait(left_s)
        return False

    def _account(self, deadline_s: float, start_s: float, end_s: float) -> float:
        slot = self._recorded % WINDOW_TICKS
        delay_s = start_s - deadline_s
        self._starts[slot], self._delays[slot], self._busy[slot] = start_s, delay_s, end_s - start_s
        self._recorded += 1
        self._ticks += 1
        self._lateness[lateness_bin(delay_s)] += 1
        if delay_s > self._period_s:
            self._late += 1
        deadline_s += self._period_s
        skipped = int((end_s - deadline_s) // self._period_s)
        if skipped > 0:  # deadlines that passed during this tick are not made up for: they count as late
            self._late += skipped
            self._ticks += skipped
            deadline_s += skipped * self._period_s
        return deadline_s


def prefer_this_thread(priority: int = LOOP_PRIORITY) -> bool:
    """Ask for a real-time priority for the calling thread.

    Ordinary users are usually refused; the figures in diagnostics tell what is reached without.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError):
        return False
    return True


def yield_this_thread(steps: int = 5) -> None:
    """Lower the priority of the calling thread and of those it will start: rendering and inference give way."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(os.getpriority(os.PRIO_PROCESS, 0) + steps, 19))
    except (OSError, AttributeError):
        return
