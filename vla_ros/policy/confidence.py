"""What a stated probability is worth: reliability curve, expected calibration error, and the temperature that mends it.

Temperature scaling, Guo et al. 2017 (1706.04599): the logit is divided by one number, fitted on validation data. It
changes how sure the policy sounds, never which of two observations it is surer about. The runtime applies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

TEMPERATURE_MIN, TEMPERATURE_MAX = 0.05, 20.0  # what a manifest may say; 1 changes nothing
BINS = 10
CERTAIN = 1e-6  # probabilities are kept this far from 0 and 1, where a logit ends


def calibrated(probability: float, temperature: float) -> float:
    """The probability after scaling; NaN stays NaN."""
    if temperature == 1.0:
        return probability
    p = min(max(probability, CERTAIN), 1.0 - CERTAIN)
    return 1.0 / (1.0 + math.exp(-math.log(p / (1.0 - p)) / temperature))


def scaled(probabilities: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """`calibrated` for many, (n,)."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), CERTAIN, 1.0 - CERTAIN)
    result: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.log(p / (1.0 - p)) / temperature))
    return result


def surprise(probabilities: ArrayLike, came_true: ArrayLike) -> float:
    """Mean negative log likelihood of what happened [nat]."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), CERTAIN, 1.0 - CERTAIN)
    y = np.asarray(came_true, dtype=bool)
    return float(-np.mean(np.where(y, np.log(p), np.log(1.0 - p))))


def fit_temperature(probabilities: ArrayLike, came_true: ArrayLike) -> float:
    """The temperature of least surprise, to 0.5 %. Raises ValueError for nothing, unequal lengths or non-finite
    values, and where all came true or none did: then every temperature is as good as its neighbour."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(came_true, dtype=bool)
    if p.shape != y.shape or p.ndim != 1 or not len(p) or not np.isfinite(p).all():
        raise ValueError(f"probabilities {p.shape} and outcomes {y.shape}: finite, of one length, at least one")
    if y.all() or not y.any():
        raise ValueError(f"all {len(y)} outcomes are alike; give validation data with successes and misses")
    candidates = np.geomspace(TEMPERATURE_MIN, TEMPERATURE_MAX, 1200)
    return float(min(candidates, key=lambda t: surprise(scaled(p, t), y)))


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions in [low, high): how many, what they said on average, and what share came true."""

    low: float
    high: float
    n: int
    said: float
    came_true: float


def reliability(probabilities: ArrayLike, came_true: ArrayLike, bins: int = BINS) -> list[Bin]:
    """The reliability curve; empty bins are left out."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(came_true, dtype=np.float64)
    index = np.clip((p * bins).astype(int), 0, bins - 1)
    return [
        Bin(k / bins, (k + 1) / bins, int(own.sum()), float(p[own].mean()), float(y[own].mean()))
        for k in range(bins)
        if (own := index == k).any()
    ]


def calibration_error(curve: list[Bin]) -> float:
    """Expected calibration error: the mean distance between said and true, weighted by how often it was said."""
    n = sum(b.n for b in curve)
    return sum(b.n * abs(b.said - b.came_true) for b in curve) / n if n else 0.0
