"""Recorded observations as a graph takes them: to calibrate with, and, held out, to compare graphs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.training.dataset import Batch, Dataset

CALIBRATION_SAMPLES = 64
COMPARE_SAMPLES = 128

Feed = dict[str, NDArray[Any]]


def feeds(rows: int, cols: int, prefix_max: int, batch: Batch, rng: np.random.Generator) -> list[Feed]:
    """One feed per sample of a batch. Every second one has a committed prefix, so that both ways are calibrated."""
    result = []
    for b in range(len(batch.ids)):
        seen = batch.picture[b]
        count = int(rng.integers(0, prefix_max + 1)) if b % 2 else 0
        prefix = np.zeros((1, rows, cols), dtype=np.float32)
        prefix[0, :count] = batch.chunk[b, :count]
        result.append(
            {
                "images": batch.images[seen : seen + 1],
                "text": batch.ids[b : b + 1],
                "state": batch.state[b : b + 1],
                "noise": rng.standard_normal((1, rows, cols), dtype=np.float32),
                "prefix": prefix,
                "prefix_rows": np.array([count], dtype=np.int64),
            }
        )
    return result


def recorded(
    data_folders: Sequence[Path], contract: Contract, tokenizer: Tokenizer, rows: int, cols: int, prefix_max: int
) -> tuple[list[Feed], list[Feed]]:
    """Recorded observations: to compare graphs on (held out), and to calibrate with. Refuses another contract's."""
    data = Dataset(data_folders, contract.hash, StateFeatures(contract).of_states)
    rng = np.random.default_rng(0)
    picks = data.validation[rng.permutation(len(data.validation))[:COMPARE_SAMPLES]]
    held_out = feeds(rows, cols, prefix_max, data.batch(picks, rng, tokenizer, None), rng)
    seen = data.training_batch(0, CALIBRATION_SAMPLES, 12345, tokenizer, None)
    return held_out, feeds(rows, cols, prefix_max, seen, rng)
