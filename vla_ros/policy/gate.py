"""The gate that a quantized policy passes or not: what it does in closed loop, beside its own float form.

Action errors alone prove nothing: policies with an action cosine of 0.999 have been stopped on real arms for their
jerk, and int4 kept the success while the jerk rose by a fifth (2603.19131). So: paired episodes, jerk and gripper too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MIN_EPISODES = 200  # of each form; fewer cannot tell two points apart
SUCCESS_LOSS_MAX = 0.02
JERK_RATIO_MAX = 1.05
POSITION_RMSE_MAX_MM = 3.0  # a choice: a third of what the float policy itself is off at the end of a chunk
ROTATION_RMSE_MAX_RAD = 0.01  # a choice: at 0.1 m from the tool point 1 mm
GRIPPER_FLIPS_MAX = 0.01  # share of rows on which one form says open and the other closed
GRIPPER_SHIFT_MAX_S = 0.05  # one row


class Played(Protocol):
    """What the gate reads of an episode."""

    @property
    def success(self) -> bool: ...
    @property
    def jerk_mean_rad_s3(self) -> float: ...
    @property
    def violations(self) -> list[str]: ...


@dataclass(frozen=True)
class Criterion:
    name: str
    value: float
    limit: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    passed: bool
    criteria: tuple[Criterion, ...]
    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def differences(reference: NDArray[np.floating], other: NDArray[np.floating], dt_s: float) -> dict[str, float]:
    """Two forms of one policy on the same observations and noise: chunks (m, R, A), tool deltas with the gripper last.

    `gripper_shift_s`: mean difference of when a chunk first changes its mind about the gripper, over the chunks in
    which either form does [s]."""
    off = reference - other
    distance_mm = np.linalg.norm(off[..., :3], axis=-1) * 1000
    closed = [chunks[..., -1] <= 0.5 for chunks in (reference, other)]  # 2 x (m, R)
    first = [np.where(c.any(1) & ~c.all(1), (c != c[:, :1]).argmax(1), c.shape[1]) for c in closed]  # 2 x (m,), rows
    changes = (first[0] < closed[0].shape[1]) | (first[1] < closed[0].shape[1])
    return {
        "position_rmse_mm": float(np.sqrt(np.mean(distance_mm**2))),
        "position_p99_mm": float(np.percentile(distance_mm, 99)),
        "rotation_rmse_rad": float(np.sqrt(np.mean(off[..., 3:6] ** 2))),
        "gripper_flips": float(np.mean(closed[0] != closed[1])),
        "gripper_shift_s": float(np.abs(first[0] - first[1])[changes].mean() * dt_s) if changes.any() else 0.0,
    }


def judge(
    reference: Sequence[Played],
    quantized: Sequence[Played],
    difference: dict[str, float],
    only: tuple[int, int, float],
    min_episodes: int = MIN_EPISODES,
) -> Verdict:
    """Paired episodes of both forms on the same seeds, and what `differences` found.

    only: episodes that the quantized form alone solved, that the reference alone solved, and McNemar's probability."""
    n = min(len(reference), len(quantized))
    before, after = (sum(e.success for e in episodes) for episodes in (reference, quantized))
    loss = (before - after) / n if n else float("nan")
    jerks = [float(np.mean([e.jerk_mean_rad_s3 for e in episodes] or [0.0])) for episodes in (reference, quantized)]
    ratio = jerks[1] / jerks[0] if jerks[0] > 0 else float("nan")
    broken = sum(bool(e.violations) for e in quantized)

    def at_most(name: str, value: float, limit: float) -> Criterion:
        return Criterion(name, value, f"at most {limit:g}", bool(np.isfinite(value)) and value <= limit)

    criteria = (
        Criterion("paired episodes", n, f"at least {min_episodes}", len(reference) == len(quantized) >= min_episodes),
        at_most("loss of success", loss, SUCCESS_LOSS_MAX),
        at_most("mean jerk, ratio", ratio, JERK_RATIO_MAX),
        at_most("episodes with command violations", broken, 0),
        at_most("position RMSE (mm)", difference["position_rmse_mm"], POSITION_RMSE_MAX_MM),
        at_most("rotation RMSE (rad)", difference["rotation_rmse_rad"], ROTATION_RMSE_MAX_RAD),
        at_most("gripper flips", difference["gripper_flips"], GRIPPER_FLIPS_MAX),
        at_most("gripper shift (s)", difference["gripper_shift_s"], GRIPPER_SHIFT_MAX_S),
    )
    facts = {
        "successes": {"float": before, "int8": after},
        "only_int8": only[0],
        "only_float": only[1],
        "mcnemar_p": only[2],
        "jerk_mean_rad_s3": {"float": jerks[0], "int8": jerks[1]},
    }
    return Verdict(all(c.passed for c in criteria), criteria, facts)


def markdown(name: str, precision: dict[str, Any], verdict: Verdict) -> str:
    """The report for a person. `precision`: the manifest's entry, with the operators that ran."""
    facts = verdict.facts
    lines = [
        f"# Quantization of `{name}`: {'passed' if verdict.passed else 'refused'}",
        "",
        f"{precision['scheme']}; {precision['int8_ran']} of {precision['int8_nodes']} chosen layers ran in int8; "
        f"{precision['calibration_samples']} recorded observations.",
        "",
        "| criterion | value | limit | passed |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.limit} | {'yes' if c.passed else '**no**'} |" for c in verdict.criteria),
        "",
        f"Successes: float {facts['successes']['float']}, int8 {facts['successes']['int8']}; only int8 "
        f"{facts['only_int8']}, only float {facts['only_float']}, McNemar p = {facts['mcnemar_p']:.3g}."
        + "".join(
            f" {form} {low:.1%} to {high:.1%} (Wilson)." for form, (low, high) in facts.get("wilson", {}).items()
        ),
        "",
        "In float, and why:",
        "",
        *(f"* {count} nodes: {why}" for why, count in precision["float_nodes"].items()),
        "",
        "What ran (profile of one inference):",
        "",
        "| node | operator | precision |",
        "|---|---|---|",
        *(f"| `{o['node']}` | {o['kind']} | {o['precision']} |" for o in precision["operators"]),
        "",
    ]
    return "\n".join(lines)
