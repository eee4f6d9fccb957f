"""The control loop's thread: punctual, woken by events, silent after a defect."""

import threading
import time

import pytest

from vla_ros.nodes.loop import ControlLoop

pytestmark = pytest.mark.unit
PERIOD_S = 0.02


def wait_for(condition, timeout_s=5.0):
    reached = threading.Event()
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not within the deadline"
        reached.wait(0.002)


def test_loop_ticks_once_a_period_on_absolute_deadlines():
    ticks = []
    loop = ControlLoop("test", PERIOD_S, ticks.append, pytest.fail)
    loop.start()
    wait_for(lambda: len(ticks) >= 25)
    loop.stop()
    assert ticks[-1] - ticks[0] == pytest.approx(PERIOD_S * (len(ticks) - 1), abs=PERIOD_S)
    stats = loop.stats()
    assert stats.ticks >= 25
    assert 0.0 <= stats.delay_p50_s <= stats.delay_p99_s <= stats.delay_max_s


def test_wake_adds_a_tick_at_once_and_does_not_shift_the_others():
    ticks = []
    loop = ControlLoop("test", 0.5, ticks.append, pytest.fail)
    loop.start()
    wait_for(lambda: len(ticks) == 1)
    asked_s = time.monotonic()
    loop.wake()
    wait_for(lambda: len(ticks) == 2)
    assert ticks[1] - asked_s < 0.2
    wait_for(lambda: len(ticks) == 3)
    assert ticks[2] - ticks[0] == pytest.approx(0.5, abs=0.1)
    loop.stop()
    assert loop.stats().ticks == 2  # of the clock; the woken one is not counted


def test_deadlines_missed_by_a_long_tick_count_as_late_and_are_not_made_up_for():
    ticks = []

    def tick(now_s):
        ticks.append(now_s)
        if len(ticks) == 3:
            time.sleep(5.5 * PERIOD_S)

    loop = ControlLoop("test", PERIOD_S, tick, pytest.fail)
    loop.start()
    wait_for(lambda: len(ticks) >= 6)
    loop.stop()
    assert loop.stats().late_ticks >= 4
    assert ticks[4] - ticks[3] > 0.25 * PERIOD_S


def test_exception_in_a_tick_silences_the_loop_and_is_reported():
    failures, ticks = [], []

    def tick(now_s):
        ticks.append(now_s)
        raise ValueError("a defect")

    loop = ControlLoop("test", PERIOD_S, tick, failures.append)
    loop.start()
    wait_for(lambda: failures)
    loop.wake()
    loop.stop()
    assert len(ticks) == 1
    assert isinstance(failures[0], ValueError)


def test_stop_returns_after_the_last_tick():
    ticks = []
    loop = ControlLoop("test", PERIOD_S, ticks.append, pytest.fail)
    loop.start()
    wait_for(lambda: ticks)
    loop.stop()
    seen = len(ticks)
    loop.wake()
    assert len(ticks) == seen


def test_period_must_be_positive():
    with pytest.raises(ValueError, match="allowed: > 0"):
        ControlLoop("test", 0.0, lambda now_s: None, pytest.fail)
