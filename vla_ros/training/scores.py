"""What a set of episodes is worth: shares with intervals, paired comparisons, and the report of `vla eval`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass
class Episode:
    """What happened in one episode. Times in seconds of simulated time."""

    seed: int | tuple[int, ...]
    family: str
    text: str
    success: bool
    wrong_object: bool
    done: bool  # the policy said so, and the arm had settled
    duration_s: float
    detail: str
    violations: list[str] = field(default_factory=list)
    inference_s: list[float] = field(default_factory=list)
    rejected: int = 0
    jerk_mean_rad_s3: float = 0.0
    wrong_direction: bool = False
    obeyed: bool | None = None  # in a swap test: did what was said and not the other; None if it did neither
    seam_rad: float = 0.0  # mean jump of the joint reference where one chunk takes over from another
    committed_rows: float = 0.0  # mean length of the prefix
    held_s: float = 0.0  # after the first chunk, in HOLD or worse


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int, float]:
    """Two arms on the same seeds: how often only we succeeded, how often only they, and the two-sided exact McNemar
    probability of a difference as large if there were none. Raises ValueError for unequal lengths."""
    only_us = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_them = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = only_us + only_them
    tail = sum(math.comb(n, k) for k in range(min(only_us, only_them) + 1)) / 2**n
    return only_us, only_them, min(1.0, 2.0 * tail)


def report(episodes: Sequence[Episode]) -> dict[str, Any]:
    """The JSON object of `vla eval`. Shares of the episodes; `false_done`: declared done and not so; `done_recall`: of
    the successes, the share that was declared; `jerk_mean`: mean absolute jerk of the commands over joints and time
    [rad/s^3]; `seam_rad`: mean jump of the reference between chunks."""
    latencies = np.array([s for e in episodes for s in e.inference_s]) * 1e3
    families = {}
    for name in dict.fromkeys(e.family for e in episodes):
        own = [e for e in episodes if e.family == name]
        wins = sum(e.success for e in own)
        families[name] = {
            "n": len(own),
            "success": wins / len(own),
            "wilson": [round(x, 4) for x in wilson(wins, len(own))],
        }
    n = len(episodes)
    wins = sum(e.success for e in episodes)
    return {
        "episodes": n,
        "success": _mean([e.success for e in episodes]),
        "wilson": [round(x, 4) for x in wilson(wins, n)],
        "wrong_object": _mean([e.wrong_object for e in episodes]),
        "wrong_direction": _mean([e.wrong_direction for e in episodes]),
        **_swap(episodes),
        "command_violations": sum(bool(e.violations) for e in episodes),
        "families": families,
        "policy_latency_ms": {"p50": _percentile(latencies, 50), "p99": _percentile(latencies, 99)},
        "done_declared": _mean([e.done for e in episodes]),
        "done_recall": _mean([e.done for e in episodes if e.success]),
        "false_done": _mean([e.done and not e.success for e in episodes]),
        "jerk_mean": _mean([e.jerk_mean_rad_s3 for e in episodes]),
        "seam_rad": _mean([e.seam_rad for e in episodes]),
        "committed_rows": _mean([e.committed_rows for e in episodes]),
        "held_s": _mean([e.held_s for e in episodes]),
        "duration_s": _mean([e.duration_s for e in episodes]),
        "failures": [
            {k: v for k, v in asdict(e).items() if k != "inference_s"}
            for e in episodes
            if not e.success or e.wrong_object or e.wrong_direction or e.violations
        ],
    }


def _swap(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """Of the episodes that went one way or the other, the share that went where told; and how many did."""
    decided = [e.obeyed for e in episodes if e.obeyed is not None]
    obeyed = sum(decided) / len(decided) if decided else None
    return {"swap_obeyed": obeyed, "swap_decided": len(decided) / len(episodes) if decided else None}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _percentile(values: np.ndarray, q: float) -> float:
    return round(float(np.percentile(values, q)), 2) if values.size else 0.0
