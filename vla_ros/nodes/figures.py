"""Figures of /diagnostics and what is made of them. They are for people, never an input to anything.

Written by the control loop's thread, read by the executor's: one appends, the other copies.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import Invalid

WINDOW_TICKS = 1000  # our choice: ten seconds at 100 Hz
WINDOW_SEAMS = 75  # our choice: ten seconds at 7.5 chunks a second
LATENESS_EDGES_MS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # upper edges of the histogram's bins


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which value on a figure is a warning and an error. Parameters `warn.<figure>` and `error.<figure>`."""

    figure: str
    warn: float
    error: float

    def validate(self) -> None:
        for name, value in (("warn", self.warn), ("error", self.error)):
            if not (math.isfinite(value) and value > 0.0):
                raise Invalid(f"{name}.{self.figure}", value, "a finite number > 0")
        if not self.warn <= self.error:
            raise Invalid(f"warn.{self.figure}", self.warn, f"at most error.{self.figure} = {self.error:g}")


def judge(thresholds: Sequence[Threshold], values: Mapping[str, object]) -> tuple[int, str]:
    """Level of diagnostic_msgs/DiagnosticStatus (0 OK, 1 WARN, 2 ERROR), and the worst figure in words."""
    level, text = 0, ""
    for threshold in thresholds:
        value = float(str(values.get(threshold.figure, 0.0)))
        for candidate, bound in ((2, threshold.error), (1, threshold.warn)):
            if not value < bound and candidate > level:  # NaN is not below anything
                level, text = candidate, f"{threshold.figure} is {value:g}, allowed: below {bound:g}"
    return level, text


SUPERVISOR_THRESHOLDS = (
    Threshold("seam_jump_rad", 0.10, 0.35),  # error: fault B12 rejects a chunk that starts farther away
    Threshold("seam_jump_rad_s", 0.60, 1.20),  # our choice: 1.2 is the joint speed limit and a fifth
    Threshold("observation_age_ms", 450.0, 500.0),  # error: fault B6; 400 on arrival is still taken (B7)
    Threshold("rows_skipped", 7.0, 12.0),  # of 16; 7 rows are 350 ms, near the 400 of fault B7
    Threshold("limiter_ratio", 0.5, 0.9),  # our choice
)
LOOP_THRESHOLDS = (
    Threshold("delay_p99_ms", 10.0, 30.0),  # a period; three of them are a late tick of fault E10
)


class MotionFigures:
    """Hand-overs between chunks, age of what is executed, and how much the limiter works."""

    def __init__(self) -> None:
        self._seams: deque[tuple[float, float, int]] = deque(maxlen=WINDOW_SEAMS)
        self._ages_s: deque[float] = deque(maxlen=WINDOW_TICKS)
        self._limited: deque[bool] = deque(maxlen=WINDOW_TICKS)
        self._chunks = 0

    def tick(self, chunks_accepted: int, seam: tuple[float, float, int], age_s: float, limited: bool) -> None:
        """Of a tick that follows a chunk. `seam`: jump [rad], jump [rad/s], rows skipped, of the newest hand-over."""
        if chunks_accepted != self._chunks:
            self._chunks = chunks_accepted
            self._seams.append(seam)
        self._ages_s.append(age_s)
        self._limited.append(limited)

    def values(self) -> dict[str, str]:
        """Empty before the first motion. Jumps, rows and age: the worst of the window."""
        seams, ages_s, limited = list(self._seams), list(self._ages_s), list(self._limited)
        if not seams or not ages_s:
            return {}
        jump_rad, jump_rad_s, skipped = np.array(seams, dtype=np.float64).T
        age_p50, age_p99 = np.percentile(ages_s, (50.0, 99.0))
        return {
            "seam_jump_rad": f"{jump_rad.max():.4f}",
            "seam_jump_rad_p50": f"{np.median(jump_rad):.4f}",
            "seam_jump_rad_s": f"{jump_rad_s.max():.4f}",
            "rows_skipped": f"{int(skipped.max())}",
            "rows_skipped_mean": f"{skipped.mean():.2f}",
            "observation_age_ms": f"{max(ages_s) * 1e3:.0f}",
            "observation_age_p50_ms": f"{age_p50 * 1e3:.0f}",
            "observation_age_p99_ms": f"{age_p99 * 1e3:.0f}",
            "limiter_ratio": f"{sum(limited) / len(limited):.3f}",
        }


def lateness_bin(delay_s: float) -> int:
    """Bin of the histogram; the last one has no upper edge."""
    return int(np.searchsorted(LATENESS_EDGES_MS, delay_s * 1e3, side="left"))


def lateness_histogram(counts: Sequence[int]) -> str:
    """`<=0.1:812 <=0.5:93 ... >50:0`, counts since the start, edges in ms."""
    names = [*(f"<={edge:g}" for edge in LATENESS_EDGES_MS), f">{LATENESS_EDGES_MS[-1]:g}"]
    return " ".join(f"{name}:{count}" for name, count in zip(names, counts, strict=True))
