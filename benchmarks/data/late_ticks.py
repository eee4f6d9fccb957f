"""Late ticks of the control loop in rounds with a recorder and without one, taken in turn: within noise or not."""

from __future__ import annotations

import math
from dataclasses import dataclass

LATE_MORE = 0.005  # our choice: share of ticks; with a recorder so much more than without is still within noise
NOISE_MAX = 0.005  # our choice: standard error of the difference above which the machine is not quiet enough to decide
QUIET_MAX = 0.01  # our choice: a machine on which so many are late without a recorder is not quiet enough, either
TICKS_MIN = 200  # our choice: of a round; less is no measurement


@dataclass(frozen=True)
class Round:
    recorder: bool
    ticks: int
    late: int
    outcomes: tuple[str, ...] = ()  # of its tasks

    @property
    def share(self) -> float:
        return self.late / self.ticks if self.ticks else math.nan


@dataclass(frozen=True)
class Verdict:
    """Shares of ticks. `decided`: the rounds of one kind are alike enough. `met`: and the recorder costs nothing."""

    without: float
    beside: float
    noise: float
    decided: bool
    met: bool


def turns(rounds: int) -> list[bool]:
    """Which rounds have a recorder: without, with, with, without, ..., so that a slow change of the machine cancels."""
    return [turn for k in range(rounds) for turn in ((False, True) if k % 2 == 0 else (True, False))]


def judge(rounds: list[Round]) -> Verdict:
    """Of rounds of both kinds. Short ones decide nothing (the arm was stopped at once), nor does one of each kind."""
    kinds = [[r for r in rounds if r.recorder is kind] for kind in (False, True)]
    without, beside = (sum(r.late for r in kind) / sum(r.ticks for r in kind) for kind in kinds)
    noise = math.sqrt(sum(_error(kind) ** 2 for kind in kinds))
    decided = noise <= NOISE_MAX and without <= QUIET_MAX and all(r.ticks >= TICKS_MIN for r in rounds)
    return Verdict(without, beside, noise, decided, decided and beside - without <= LATE_MORE)


def _error(kind: list[Round]) -> float:
    """Standard error of the mean share; nothing is known of it from one round."""
    n = len(kind)
    if n < 2:
        return math.inf
    mean = sum(r.share for r in kind) / n
    return math.sqrt(sum((r.share - mean) ** 2 for r in kind) / (n - 1) / n)


def markdown(rounds: list[Round], verdict: Verdict) -> str:
    rows = ["| round | recorder | ticks | late | share | tasks done |", "|---|---|---|---|---|---|"]
    for k, r in enumerate(rounds, 1):
        done = f"{sum(o == 'done' for o in r.outcomes)} of {len(r.outcomes)}"
        rows.append(f"| {k} | {'on' if r.recorder else 'off'} | {r.ticks} | {r.late} | {r.share:.3%} | {done} |")
    words = "within noise" if verdict.met else "**more with a recorder**" if verdict.decided else "**not decided**"
    return (
        "\n".join(rows) + f"\n\nLate ticks: {verdict.without:.3%} without a recorder, {verdict.beside:.3%} with one, "
        f"standard error of the difference {verdict.noise:.3%}: {words}. At most {LATE_MORE:.1%} more is noise. "
        f"A machine is quiet enough to decide with at most {QUIET_MAX:.1%} late without a recorder, a standard error "
        f"of at most {NOISE_MAX:.1%}, and {TICKS_MIN} ticks in each round."
    )
