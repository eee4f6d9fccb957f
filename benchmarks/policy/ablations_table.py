"""Arms of an ablation on the same scenes, and the table that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vla_ros.training.evaluate import Episode, Execution, evaluate, paired, report, trials, wilson

HEADER = ("arm", "success", "95 % interval", "against", "won / lost", "p", "jerk", "seam", "held")
NOTES = (
    "Won / lost: seeds on which only this arm, or only the one it is compared with, succeeded; p: exact McNemar. "
    "Jerk: mean absolute, commands [rad/s^3]; seam: mean jump of the reference between chunks [mrad]; "
    "held: seconds per episode in hold after the first chunk."
)


@dataclass(frozen=True)
class Arm:
    """One way to do it. `against`: label of the arm that it is compared with."""

    label: str
    execution: Execution = field(default_factory=Execution)
    against: str | None = None


@dataclass(frozen=True)
class Scenes:
    """The episodes that every arm plays."""

    episodes: int
    seed: int
    family: str | None = None
    swap: bool = False
    workers: int = 1


def play(arms: Sequence[Arm], scenes: Scenes, policy: str | None, runtime: str) -> dict[str, list[Episode]]:
    """Label -> episodes, in the order of the seeds."""
    planned = trials(scenes.episodes, scenes.seed, family=scenes.family, swap=scenes.swap)
    return {
        arm.label: evaluate(
            planned, policy=policy, runtime=runtime, execution=arm.execution, workers=scenes.workers
        )
        for arm in arms
    }  # fmt: skip


def compare(arms: Sequence[Arm], played: dict[str, list[Episode]]) -> list[tuple[str, ...]]:
    """Rows of the table. Arms without episodes are left out."""
    rows = []
    for arm in arms:
        episodes = played.get(arm.label, [])
        if not episodes:
            continue
        facts, wins = report(episodes), [e.success for e in episodes]
        low, high = wilson(sum(wins), len(wins))
        other = [e.success for e in played[arm.against]] if arm.against in played else None
        won, lost, p = paired(wins, other) if other is not None else (0, 0, 1.0)
        rows.append(
            (
                arm.label,
                f"{sum(wins)} of {len(wins)}",
                f"{low:.1%} to {high:.1%}",
                arm.against or "",
                f"{won} / {lost}" if other is not None else "",
                f"{p:.3f}" if other is not None else "",
                f"{facts['jerk_mean']:.1f}",
                f"{facts['seam_rad'] * 1e3:.1f}",
                f"{facts['held_s']:.2f}",
            )
        )
    return rows


def swap_rows(played: dict[str, list[Episode]]) -> list[tuple[str, ...]]:
    """Of a swap test: of the episodes that went one way or the other, how many went where told."""
    rows = []
    for label, episodes in played.items():
        went = [e.obeyed for e in episodes if e.obeyed is not None]
        low, high = wilson(sum(went), len(went))
        rows.append(
            (label, f"{sum(went)} of {len(went)}", f"{low:.1%} to {high:.1%}", f"{len(went)} of {len(episodes)}")
        )
    return rows


SWAP_HEADER = ("arm", "went where told", "95 % interval", "went anywhere")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
