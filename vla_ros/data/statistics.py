"""Statistics of a data set: exact, from all values, the same whenever they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.types import ByteArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}  # names as in LeRobot's stats.json
LEVELS = 256

Histogram = NDArray[np.int64]  # (3, 256): pixels of one camera by channel and value; sums of these are exact


def empty_histogram() -> Histogram:
    return np.zeros((3, LEVELS), dtype=np.int64)


def count(histogram: Histogram, rgb: ByteArray) -> None:
    """Add a picture (H, W, 3)."""
    for channel in range(3):
        histogram[channel] += np.bincount(rgb[..., channel].ravel(), minlength=LEVELS)


def of_pixels(histogram: Histogram, pictures: int) -> dict[str, Any]:
    """Of values 0 to 1, each (3, 1, 1) as nested lists; `count` is the number of pictures."""
    values = np.arange(LEVELS) / 255.0
    total = histogram.sum(axis=1)  # (3,)
    mean = histogram @ values / total
    square = histogram @ values**2 / total
    below = np.cumsum(histogram, axis=1)  # (3, 256)

    def level(share: float) -> NDArray[np.float64]:
        """The smallest value that at least this share of the pixels does not exceed."""
        return np.array([values[np.searchsorted(below[c], max(share * total[c], 1.0))] for c in range(3)])

    found = {
        "min": level(0.0),
        "max": level(1.0),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0.0)),
        **{name: level(share) for name, share in QUANTILES.items()},
    }
    return {name: v.reshape(3, 1, 1).tolist() for name, v in found.items()} | {"count": [pictures]}


def of_column(column: NDArray[Any]) -> dict[str, Any]:
    """Of rows (n, d) or (n,), each a list of d numbers; `count` is n."""
    rows = np.asarray(column, dtype=np.float64).reshape(len(column), -1)  # (n, d)
    found = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        **{name: np.quantile(rows, share, axis=0) for name, share in QUANTILES.items()},
    }
    return {name: v.tolist() for name, v in found.items()} | {"count": [len(rows)]}


def of_dataset(
    columns: Mapping[str, NDArray[Any]], histograms: Mapping[str, Iterable[Histogram]], pictures: int
) -> dict[str, dict[str, Any]]:
    """By feature, in the order given."""
    return {
        **{key: of_pixels(np.sum(list(parts), axis=0), pictures) for key, parts in histograms.items()},
        **{key: of_column(column) for key, column in columns.items()},
    }
