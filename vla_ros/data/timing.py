"""Is a stream as regular as its contract says, and do its clocks agree? Arrays of times in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.observation import SKEW_MAX_S
from vla_ros.data.findings import Finding, Kind, Weight, finding

NS = 1_000_000_000
# Our choices, unless a source is named; each far from what a loaded but sound machine shows.
RATE_WINDOW_S, RATE_TOLERANCE = 1.0, 0.15  # median of the periods in a window, against the declared period
LOST_AT_PERIODS = 1.6  # a frame is missing between two whose stamps are this many periods apart
LOST_MAX = 0.01  # share of frames; more is a major finding
EDGE_S = 0.3  # a stream may begin this much later than the bag, and end earlier, beyond its longest gap
SKEW_WINDOW_S = 1.0  # the least delay in a window tells clocks apart from a busy machine, which only delays
AHEAD_S = 0.005  # a stamp from the future
DRIFT_S = 0.020  # between the least delays of the first and the last third
WINDOW_MIN = 5  # values


@dataclass(frozen=True)
class Stream:
    """Times of one topic [ns]. `stamp_ns` is None where messages carry no time of their own that may be judged."""

    topic: str
    log_ns: NDArray[np.int64]  # (k,)
    stamp_ns: NDArray[np.int64] | None
    rate_hz: float | None  # declared; None: none is
    at_least: bool  # the declared rate is a lower bound
    gap_max_s: float  # age at which the live graph gives it up
    frames: bool = False  # a single lost message counts

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """The source's own clock where there is one: middleware jitter is not the source's."""
        return self.log_ns if self.stamp_ns is None else self.stamp_ns


def judge(stream: Stream, start_ns: int, end_ns: int) -> Iterator[Finding]:
    """All checks of time. `start_ns`, `end_ns`: of the bag."""
    times = stream.times_ns
    if stream.stamp_ns is not None:
        wrong = np.flatnonzero(np.diff(stream.stamp_ns) <= 0)
        if wrong.size:
            yield finding(
                Kind.STAMPS, "stamps that do not increase", int(wrong.size), 0, stream.topic,
                (int(stream.log_ns[wrong[0] + 1]) - start_ns) / NS,
            )  # fmt: skip
            times = np.sort(times)
        yield from _clocks(stream, start_ns)
    if stream.rate_hz is not None:
        yield from _rate(stream, times, start_ns)
    yield from _gaps(stream, start_ns, end_ns)
    if stream.frames and stream.rate_hz is not None:
        yield from _lost(stream, times, start_ns)


def _windows(times_ns: NDArray[np.int64], window_s: float) -> Iterator[NDArray[np.int64]]:
    """Indices of the values in each window; a short last one belongs to the one before."""
    count = max(int((times_ns[-1] - times_ns[0]) / NS / window_s), 1) if times_ns.size else 0
    slot = np.minimum((times_ns - times_ns[:1]) // round(window_s * NS), count - 1)
    for k in range(count):
        index = np.flatnonzero(slot == k)
        if index.size >= WINDOW_MIN:
            yield index


def _rate(stream: Stream, times: NDArray[np.int64], start_ns: int) -> Iterator[Finding]:
    declared = stream.rate_hz or 0.0
    worst: tuple[float, float, float] | None = None  # how far off, rate, when
    for index in _windows(times, RATE_WINDOW_S):
        period_s = float(np.median(np.diff(times[index]))) / NS
        rate = 1.0 / period_s if period_s > 0.0 else float("inf")
        off = rate / declared - 1.0
        off = max(-off, 0.0) if stream.at_least else abs(off)
        if not off <= RATE_TOLERANCE and (worst is None or off > worst[0]):
            worst = (off, rate, (int(times[index[0]]) - start_ns) / NS)
    if worst is not None:
        bound = f"{'>= ' if stream.at_least else ''}{declared:g} Hz, -{RATE_TOLERANCE:.0%}" + (
            "" if stream.at_least else f" +{RATE_TOLERANCE:.0%}"
        )
        yield finding(Kind.RATE, "messages per second", worst[1], bound, stream.topic, worst[2])


def _gaps(stream: Stream, start_ns: int, end_ns: int) -> Iterator[Finding]:
    edge_ns = round(EDGE_S * NS)
    times = np.concatenate([[start_ns + edge_ns], stream.log_ns, [end_ns - edge_ns]])
    gaps = np.diff(times)
    longest = int(gaps.argmax())
    bad = int((gaps > stream.gap_max_s * NS).sum())
    if bad:
        text = "seconds without a message" + (f", the longest of {bad} gaps" if bad > 1 else "")
        at_s = max((int(times[longest]) - start_ns) / NS, 0.0)
        yield finding(Kind.GAP, text, gaps[longest] / NS, stream.gap_max_s, stream.topic, at_s)


def _lost(stream: Stream, times: NDArray[np.int64], start_ns: int) -> Iterator[Finding]:
    periods = np.diff(times) / NS * (stream.rate_hz or 0.0)
    wide = np.flatnonzero(periods > LOST_AT_PERIODS)
    lost = int(np.round(periods[wide] - 1.0).sum())
    if lost:
        share = lost / (times.size + lost)
        yield finding(
            Kind.LOST, f"share of frames that never came ({lost})", share, LOST_MAX, stream.topic,
            (int(times[wide[0]]) - start_ns) / NS, weight=Weight.MAJOR if share > LOST_MAX else None,
        )  # fmt: skip


def _clocks(stream: Stream, start_ns: int) -> Iterator[Finding]:
    """Receipt minus stamp: a sound stream arrives soon, and never before it was made."""
    assert stream.stamp_ns is not None
    delay_s = (stream.log_ns - stream.stamp_ns) / NS  # (k,)
    skewed = False
    for index in _windows(stream.log_ns, SKEW_WINDOW_S):
        least = float(delay_s[index].min())
        if not -AHEAD_S <= least <= SKEW_MAX_S:
            skewed = True
            yield finding(
                Kind.SKEW, "least delay from stamp to receipt within a second [s]", least,
                f"-{AHEAD_S:g} to {SKEW_MAX_S:g}", stream.topic, (int(stream.log_ns[index[0]]) - start_ns) / NS,
            )  # fmt: skip
            break
    third = delay_s.size // 3
    if not skewed and third >= WINDOW_MIN:
        drift = float(delay_s[-third:].min() - delay_s[:third].min())
        if not abs(drift) <= DRIFT_S:
            yield finding(
                Kind.DRIFT, "change of the least delay from first to last third [s]", drift, DRIFT_S, stream.topic
            )
