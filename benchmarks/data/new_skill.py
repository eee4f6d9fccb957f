"""A new skill from a few scripted demonstrations: what it is worth afterwards, and what the old suite loses.

    python benchmarks/data/new_skill.py --from RUN --old DEMONSTRATIONS --out DIR [--workers 2]
    python benchmarks/data/new_skill.py ... --text "pick up the {colour} {shape}" --means "" --pairs heldout

The way of docs/tutorials/teach_a_new_task.md: episodes recorded as bags, audited, exported, mixed with old data,
trained, played. Bars: >= 70 % success of the new skill, the old suite loses <= 3 points. Without --text the skill is a
verb that no policy was taught ("tidy up" puts a thing on the tray); what the start makes of it, were it not to refuse
the unknown word, is reported, too. Every step goes on where it was interrupted: run the same command again. Prints
Markdown, writes DIR/result.json. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.data import export as exporting
from vla_ros.data.audit import audit_folder
from vla_ros.training import evaluate, scripted
from vla_ros.training.config import load_config
from vla_ros.training.forgetting import BEFORE, compare
from vla_ros.training.scores import Episode, paired, wilson
from vla_ros.training.train import train

SUCCESS_MIN, LOST_POINTS_MAX = 0.70, 3.0
BLOCK = 20  # episodes between two writes
console = Console(stderr=True)


def played(run: Path, planned: Sequence[evaluate.Trial], file: Path, a: argparse.Namespace) -> list[Episode]:
    """One line of `file` per episode; those that are there are not played again."""
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [Episode(**json.loads(line)) for line in lines][: len(planned)]
    if [e.seed for e in found] != [t.seed for t in planned[: len(found)]]:
        raise VlaError(f"{file}: holds other episodes; give a fresh --out")
    with file.open("a") as out:
        while len(found) < len(planned):
            block = planned[len(found) : len(found) + BLOCK]
            episodes = evaluate.evaluate(
                block, robot=a.robot, policy=str(run), runtime="torch", workers=a.workers, ray=a.ray, console=console
            )
            for episode in episodes:
                out.write(json.dumps(dataclasses.asdict(episode) | {"inference_s": []}) + "\n")
            out.flush()
            found += episodes
    return found


def data_set(a: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Bags of the new skill, audited and exported; the data set and what is known of them."""
    bags, out = a.out / "episodes", a.out / "dataset"
    made = scripted.demonstrate(
        bags, a.text, a.means, a.demonstrations, a.seed, a.robot, workers=a.workers, ray=a.ray, console=console,
        heldout_pairs=a.pairs == "heldout",
    )  # fmt: skip
    contract = contracts.load(a.robot)
    grades = [audit_folder(path, contract).grade for path in sorted(bags.iterdir()) if path.is_dir()]
    if not out.exists():
        options = exporting.Options(a.robot, selection=exporting.Selection(grade="B"))
        exporting.export([bags], out, options, a.workers, a.ray)
    kept = json.loads((out / "meta" / "info.json").read_text())["total_episodes"]
    return out, {"demonstrations": made["episodes"], "taken": kept, "grades": "".join(sorted(grades))}


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """All steps. Raises VlaError."""
    new, facts = data_set(a)
    run = a.out / "run"
    trained = train(
        load_config(a.config), [*a.old, new], run, start=a.start, max_minutes=a.max_minutes, console=console,
        weights=[(1.0 - a.share) / len(a.old)] * len(a.old) + [a.share],
    )  # fmt: skip
    if trained["stopped_by_signal"]:
        raise VlaError("training was stopped; run the same command to go on")
    asked = evaluate.trials(a.episodes, a.first_seed, text=a.text, means=a.means or a.text, pairs=a.pairs)
    suite = evaluate.trials(a.old_episodes, a.first_seed + 100_000)
    arms = {"before": run / BEFORE, "after": run}
    skill = {arm: played(folder, asked, a.out / f"new_{arm}.jsonl", a) for arm, folder in arms.items()}
    old = {arm: played(folder, suite, a.out / f"old_{arm}.jsonl", a) for arm, folder in arms.items()}
    wins = {arm: [e.success for e in episodes] for arm, episodes in skill.items()}
    found = {
        "text": a.text, "means": a.means, "pairs": a.pairs, **facts, "steps": trained["step"],
        "training_seconds": trained["seconds"],
        "new": {
            arm: {"success": sum(w) / len(w), "wilson": wilson(sum(w), len(w)), "episodes": len(w)}
            for arm, w in wins.items()
        },
        "new_only_after_only_before_p": paired(wins["after"], wins["before"]),
        "old": compare(old["before"], old["after"]),
    }  # fmt: skip
    met = {
        "new skill": found["new"]["after"]["success"] >= SUCCESS_MIN,
        "old suite": found["old"]["lost_points"] <= LOST_POINTS_MAX,
    }
    return found | {"met": met}


def markdown(found: dict[str, Any]) -> str:
    rows = ["| what | bar | before | after | met |", "|---|---|---|---|---|"]
    new, old = found["new"], found["old"]
    for name, arms, bar in (
        ("new skill", new, f">= {SUCCESS_MIN:.0%}"),
        ("old suite", old, f"loses <= {LOST_POINTS_MAX:g} points ({old['lost_points']:+.1f} lost)"),
    ):
        shown = [
            f"{arms[arm]['success']:.1%} ({arms[arm]['wilson'][0]:.1%} to {arms[arm]['wilson'][1]:.1%})"
            for arm in ("before", "after")
        ]
        rows.append(f"| {name} | {bar} | {' | '.join(shown)} | {'yes' if found['met'][name] else '**no**'} |")
    what = f"`{found['text']}`" + (f" = `{found['means']}`" if found["means"] else f", pairs {found['pairs']}")
    return (
        f"{what}: {found['taken']} of {found['demonstrations']} scripted demonstrations (grades {found['grades']}), "
        f"{found['steps']} steps in {found['training_seconds'] / 60:.0f} minutes; {new['after']['episodes']} episodes "
        f"of the new skill, {old['episodes']} of the old suite (only before {old['only_before']}, only after "
        f"{old['only_after']}, p = {old['mcnemar_p']:.2g}).\n\n" + "\n".join(rows)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", type=Path, required=True, help="training run (or folder with weights)")
    parser.add_argument("--old", type=Path, required=True, nargs="+", help="demonstrations it was made with")
    parser.add_argument("--out", type=Path, required=True, help="everything goes here; the same folder is gone on with")
    parser.add_argument("--config", type=Path, default=Path("config/train/finetune.yaml"))
    parser.add_argument("--text", default="tidy up the {colour} {shape}", help="the new sentence")
    parser.add_argument("--means", default="put the {colour} {shape} on the tray", help="what it asks for")
    parser.add_argument(
        "--pairs", choices=evaluate.SETS, default="trained", help="heldout: colour-shape pairs never named"
    )
    parser.add_argument("--demonstrations", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.3, help="of every batch, from the new demonstrations")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--episodes", type=int, default=200, help="of the new skill, before and after")
    parser.add_argument("--old-episodes", type=int, default=600, help="of the old suite, before and after")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations")
    parser.add_argument("--first-seed", type=int, default=300_000, help="of the scenes that are played")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", default="")
    parser.add_argument("--robot", default="panda")
    a = parser.parse_args(arguments)
    if not 0.0 < a.share < 1.0:
        parser.error(f"--share is {a.share}, allowed: above 0, below 1")
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(a)
    except (VlaError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    (a.out / "result.json").write_text(json.dumps(found, indent=1))
    print(markdown(found))
    return 0 if all(found["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
