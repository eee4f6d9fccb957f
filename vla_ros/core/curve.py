"""Curves in joint space over time, and the smoothing of the rows they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vla_ros.core.types import FloatArray

# Binomial kernel over rows. Policy rows carry 1-2 mrad of noise, which at 20 Hz would be felt as jerk; measured with
# 1 mrad noise: rms jerk 28 -> 5 rad/s^3, for a bias of half a row's curvature (1.2 mrad at 1 rad/s^2).
SMOOTHING = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Cubic Hermite curve through equidistant knots: C1, and its speed is known exactly."""

    start_s: float
    dt_s: float
    knots: FloatArray  # (m, n) rad
    tangents: FloatArray  # (m, n) rad/s

    @property
    def end_s(self) -> float:
        return self.start_s + self.dt_s * (len(self.knots) - 1)

    def at(self, t_s: float) -> tuple[FloatArray, FloatArray]:
        """(q, v); constant before the first and after the last knot."""
        if not t_s > self.start_s:
            return self.knots[0], np.zeros_like(self.knots[0])
        if not t_s < self.end_s:
            return self.knots[-1], np.zeros_like(self.knots[-1])
        h = self.dt_s
        k = min(int((t_s - self.start_s) / h), len(self.knots) - 2)
        s = (t_s - self.start_s) / h - k
        q0, q1, m0, m1 = self.knots[k], self.knots[k + 1], self.tangents[k] * h, self.tangents[k + 1] * h
        step = q1 - q0
        c2, c3 = 3.0 * step - 2.0 * m0 - m1, m0 + m1 - 2.0 * step
        return q0 + s * (m0 + s * (c2 + s * c3)), (m0 + s * (2.0 * c2 + 3.0 * s * c3)) / h


def smooth_curve(start_s: float, dt_s: float, rows: FloatArray) -> Curve:
    """Along rows (m, n) that begin at `start_s`. All knots but the last two are as if more rows followed."""
    knots = smooth_rows(rows)
    return Curve(start_s, dt_s, knots, _central_differences(knots, dt_s))


def _central_differences(knots: FloatArray, dt_s: float) -> FloatArray:
    """(m, n): as `np.gradient(knots, dt_s, axis=0)`, bit for bit, at a third of its cost."""
    tangents = np.empty_like(knots)
    tangents[1:-1] = (knots[2:] - knots[:-2]) / (2.0 * dt_s)
    tangents[0], tangents[-1] = (knots[1] - knots[0]) / dt_s, (knots[-1] - knots[-2]) / dt_s
    return tangents


def smooth_rows(rows: FloatArray) -> FloatArray:
    """(m, n) -> (m, n): binomial mean over five rows; the first and the last row keep their values."""
    smoothed: FloatArray = _smoothing(len(rows)) @ rows
    return smoothed


@lru_cache(maxsize=64)
def _smoothing(m: int) -> FloatArray:
    """(m, m): the smoothing of m rows as one matrix."""
    rows = np.eye(m)
    if m < 3:
        return rows
    index = np.arange(-2, m + 2)  # (m + 4,)
    low, high = np.clip(-index, 0, m - 1), np.clip(2 * (m - 1) - index, 0, m - 1)
    padded = rows[np.clip(index, 0, m - 1)]  # (m + 4, m)
    padded[:2] = 2.0 * rows[0] - rows[low[:2]]  # odd reflection: a straight motion stays straight to its end
    padded[-2:] = 2.0 * rows[-1] - rows[high[-2:]]
    return sum((w * padded[i : i + m] for i, w in enumerate(SMOOTHING)), np.zeros_like(rows))
