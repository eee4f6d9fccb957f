"""What fine-tuning cost: the old suite in closed loop, before and after, on the same scenes.

A validation loss on old data says little about it: the arm may miss by a finger's width that no loss shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_ros.training.scores import Episode, paired, wilson

BEFORE, REPORT = "before", "forgetting.json"


@dataclass(frozen=True)
class Forgetting:
    """Old suite: seeds `seed`, `seed` + 1, ..., families in turn. `ray`: see `evaluate`."""

    episodes: int
    seed: int = 20_000  # our choice: beside those of the quantization gate and of published figures
    ray: str = ""

    def measure(self, before: Path, after: Path, robot: str, workers: int, console: Console) -> dict[str, Any]:
        """Play both policies (run folders), write the report into `after` and show it. Returns it."""
        from vla_ros.training.evaluate import evaluate, trials

        played = []
        for folder in (before, after):
            console.print(f"old suite, {self.episodes} episodes with {folder}", soft_wrap=True)
            played.append(
                evaluate(
                    trials(self.episodes, self.seed),
                    robot=robot,
                    policy=str(folder),
                    runtime="torch",
                    workers=workers,
                    ray=self.ray,
                    console=console,
                )
            )
        found = {"seed": self.seed, **compare(*played)}
        part = after / f".{REPORT}"
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(part, after / REPORT)
        console.print(table(found))
        return found


def compare(before: Sequence[Episode], after: Sequence[Episode]) -> dict[str, Any]:
    """Two arms on the same seeds. Shares 0..1; `lost_points`: percentage points of success, negative for a gain;
    `mcnemar_p`: exact, two-sided. Raises ValueError for other seeds."""
    if [(e.seed, e.text) for e in before] != [(e.seed, e.text) for e in after]:
        raise ValueError("before and after must be the same episodes")
    gained, lost, p = paired([e.success for e in after], [e.success for e in before])
    families = dict.fromkeys(e.family for e in before)
    rows = {
        name: _row([e for e in before if e.family == name], [e for e in after if e.family == name]) for name in families
    }
    whole = _row(before, after)
    return {**whole, "only_before": lost, "only_after": gained, "mcnemar_p": round(p, 6), "families": rows}


def _row(before: Sequence[Episode], after: Sequence[Episode]) -> dict[str, Any]:
    n, arms = len(before), {}
    for name, episodes in (("before", before), ("after", after)):
        wins = sum(e.success for e in episodes)
        arms[name] = {"success": wins / n if n else 0.0, "wilson": [round(x, 4) for x in wilson(wins, n)]}
    points = 100.0 * (arms["before"]["success"] - arms["after"]["success"])
    return {"episodes": n, **arms, "lost_points": round(points, 2)}


def table(found: dict[str, Any]) -> Table:
    """For a person."""
    grid = Table("old suite", "episodes", "before", "after", "lost (points)", box=None)
    for name, row in (*found["families"].items(), ("all", found)):
        shares = [f"{row[arm]['success']:.1%}" for arm in ("before", "after")]
        grid.add_row(name, str(row["episodes"]), *shares, f"{row['lost_points']:+.1f}")
    low, high = found["after"]["wilson"]
    grid.caption = (
        f"after: {low:.1%} to {high:.1%} (Wilson); only before {found['only_before']}, only after "
        f"{found['only_after']}, McNemar p = {found['mcnemar_p']:.3g}"
    )
    return grid
