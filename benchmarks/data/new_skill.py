"""A new skill from a few scripted demonstrations: what it is worth afterwards, and what the old suite loses.

    python benchmarks/data/new_skill.py --from RUN --old DEMONSTRATIONS... --out DIR [--workers 2]
    python benchmarks/data/new_skill.py ... --text "pick up the {colour} {shape}" --means "" --pairs heldout

The way of docs/tutorials/teach_a_new_task.md: episodes recorded as bags, audited, exported, mixed with old data,
trained, played. Bars: >= 70 % success of the new skill, the old suite loses <= 3 points. Without --text the skill is a
verb that no policy was taught ("tidy up" puts a thing on the tray), of nine things; what the start makes of it, were it
not to refuse the unknown word, is played, too. Every step goes on where it was interrupted: run the same command again,
also with more episodes. Prints Markdown, writes DIR/report.md and DIR/result.json. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from new_skill_files import Episodes, Settings
from rich.console import Console

from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.data import export as exporting
from vla_ros.data.audit import audit_folder
from vla_ros.data.disk import write_whole
from vla_ros.training import evaluate, scripted
from vla_ros.training.checkpoint import read_start
from vla_ros.training.config import TrainConfig, load_config
from vla_ros.training.forgetting import BEFORE, compare
from vla_ros.training.scores import Episode, paired, wilson
from vla_ros.training.train import train

SUCCESS_MIN, LOST_POINTS_MAX = 0.70, 3.0
EMA_SPANS = 6.0  # our choice: the averaged weights look back over a sixth of the run; e^-6 of the start is left in them
WARM_UP_STEPS = 30  # our choice
console = Console(stderr=True)


def stage(number: int, what: str) -> None:
    console.rule(f"{number} of 5: {what}", align="left")


def played(run: Path, planned: Sequence[evaluate.Trial], file: Path, a: argparse.Namespace) -> list[Episode]:
    """Those that are in `file` are not played again."""
    kept = Episodes(file)
    todo = [trial for trial in planned if trial.seed not in kept.by_seed]
    if todo:
        console.print(f"{file.stem}: {len(todo)} of {len(planned)} episodes are to be played")
        evaluate.evaluate(
            todo, robot=a.robot, policy=str(run), runtime="torch", workers=a.workers, ray=a.ray, progress=kept.add,
            console=console,
        )  # fmt: skip
    return [kept.by_seed[trial.seed] for trial in planned]


def data_set(a: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Bags of the new skill, audited and exported; the data set and what is known of them."""
    bags, out = a.out / "episodes", a.out / "dataset"
    stage(1, f"{a.demonstrations} demonstrations")
    made = scripted.demonstrate(
        bags, a.text, a.means, a.demonstrations, a.seed, a.robot, workers=a.workers, ray=a.ray, console=console,
        heldout_pairs=a.pairs == "heldout",
    )  # fmt: skip
    stage(2, "audit and export")
    contract = contracts.load(a.robot)
    grades = [audit_folder(path, contract).grade for path in sorted(bags.iterdir()) if path.is_dir()]
    if not out.exists():
        options = exporting.Options(a.robot, selection=exporting.Selection(grade="B"))
        exporting.export([bags], out, options, a.workers, a.ray)
    info = json.loads((out / "meta" / "info.json").read_text())
    facts = {"taken": info["total_episodes"], "frames": info["total_frames"], "grades": "".join(sorted(grades))}
    return out, {"demonstrations": made["episodes"], **facts}


def training(a: argparse.Namespace, contract_hash: str) -> TrainConfig:
    """The fine-tuning file, made as long as asked for, with the start's model and the weights that it was made with: a
    part of the loss that it never knew would change more than the new skill does."""
    config = load_config(a.config)
    start, description = read_start(a.start, contract_hash)
    made_with = description["training"].get("config", {})
    learned = {name: made_with[name] for name in ("weights", "families", "done_share") if name in made_with}
    changes = {
        "steps": a.steps,
        "ema": min(config.ema, max(0.0, 1.0 - EMA_SPANS / a.steps)),
        "warmup_steps": min(config.warmup_steps, WARM_UP_STEPS),
        "save_every": min(config.save_every, 100),
        "learning_rate": a.learning_rate or config.learning_rate,
        "old_share": 1.0 - a.share,
        "model": start.config,
    }
    return TrainConfig.model_validate(config.model_dump() | learned).model_copy(update=changes)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """All steps. Raises VlaError."""
    new, facts = data_set(a)
    contract_hash = contracts.load(a.robot).hash
    run, config = a.out / "run", training(a, contract_hash)
    stage(3, f"training, {config.steps} steps of {config.batch}")
    trained = train(config, [new], run, old_folders=a.old, start=a.start, max_minutes=a.max_minutes, console=console)
    if trained["stopped_by_signal"]:
        raise VlaError("training was stopped; run the same command to go on")
    asked = evaluate.trials(a.episodes, a.first_seed, text=a.text, means=a.means or a.text, pairs=a.pairs)
    suite = evaluate.trials(a.old_episodes, a.first_seed + 100_000)
    stage(4, "the new skill, after and before")
    after = played(run, asked, a.out / "new_after.jsonl", a)
    before = played(run / BEFORE, asked[: a.before_episodes], a.out / "new_before.jsonl", a)
    stage(5, "the old suite, before and after on the same scenes")
    old = [played(run / BEFORE, suite, a.out / "old_before.jsonl", a), played(run, suite, a.out / "old_after.jsonl", a)]
    wins = {"before": [e.success for e in before], "after": [e.success for e in after]}
    found = {
        "text": a.text, "means": a.means, "pairs": a.pairs, **facts, "steps": trained["step"],
        "samples": trained["step"] * config.batch, "share": a.share, "learning_rate": config.learning_rate,
        "keep": config.keep,
        "training_seconds": trained["seconds"],
        "new": {
            arm: {"success": sum(w) / len(w), "wilson": wilson(sum(w), len(w)), "episodes": len(w)}
            for arm, w in wins.items()
        },
        "new_only_after_only_before_p": paired(wins["after"][: len(before)], wins["before"]),
        "failures": [f"{e.seed} {e.text}: {e.detail}" for e in after if not e.success],
        "old": compare(*old),
    }  # fmt: skip
    found["old"]["lost_points_interval"] = interval(found["old"])
    met = {
        "new skill": found["new"]["after"]["success"] >= SUCCESS_MIN,
        "old suite": found["old"]["lost_points"] <= LOST_POINTS_MAX,
    }
    return found | {"met": met}


def interval(old: dict[str, Any]) -> list[float]:
    """95 % interval of the lost percentage points, from the pairs that disagree (Wald, paired)."""
    n, lost, gained = old["episodes"], old["only_before"], old["only_after"]
    half = 196.0 * math.sqrt(lost + gained - (lost - gained) ** 2 / n) / n
    return [round(old["lost_points"] - half, 1), round(old["lost_points"] + half, 1)]


def markdown(found: dict[str, Any]) -> str:
    """What is written and printed."""
    new, old = found["new"], found["old"]
    low, high = old["lost_points_interval"]
    losses = f"loses <= {LOST_POINTS_MAX:g} points: {old['lost_points']:+.1f} ({low:+} to {high:+})"

    def share(row: dict[str, Any]) -> str:
        return f"{row['success']:.1%} ({row['wilson'][0]:.1%} to {row['wilson'][1]:.1%})"

    rows = ["| what | bar | before | after | met |", "|---|---|---|---|---|"]
    for name, arms, bar in (("new skill", new, f">= {SUCCESS_MIN:.0%}"), ("old suite", old, losses)):
        met = "yes" if found["met"][name] else "**no**"
        rows.append(f"| {name} | {bar} | {share(arms['before'])} | {share(arms['after'])} | {met} |")
    rows += ["", "| old suite | episodes | before | after | lost (points) |", "|---|---|---|---|---|"]
    for name, row in old["families"].items():
        arms = [f"{row[arm]['success']:.1%}" for arm in ("before", "after")]
        rows.append(f"| {name} | {row['episodes']} | {' | '.join(arms)} | {row['lost_points']:+.1f} |")
    what = f"`{found['text']}`" + (f" = `{found['means']}`" if found["means"] else f", pairs {found['pairs']}")
    return (
        f"{what}: {found['taken']} of {found['demonstrations']} scripted demonstrations (grades {found['grades']}, "
        f"{found['frames']} pictures), {found['steps']} steps ({found['samples']} samples, {found['share']:.0%} new) "
        f"in {found['training_seconds'] / 60:.0f} minutes; {new['after']['episodes']} episodes of the new skill "
        f"({new['before']['episodes']} before), {old['episodes']} of the old suite, the same scenes before and after "
        f"(only before {old['only_before']}, only after {old['only_after']}, McNemar p = {old['mcnemar_p']:.2g}). "
        "Shares with 95 % Wilson intervals.\n\n" + "\n".join(rows) + "\n"
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", type=Path, required=True, help="training run (or folder with weights)")
    parser.add_argument(
        "--old", type=Path, required=True, nargs="+", help="demonstrations and corrections of its making"
    )
    parser.add_argument("--out", type=Path, required=True, help="everything goes here; the same folder is gone on with")
    parser.add_argument("--config", type=Path, default=Path("config/train/finetune.yaml"))
    parser.add_argument("--steps", type=int, default=600, help="of the training, instead of the file's")
    parser.add_argument("--learning-rate", type=float, help="instead of the file's")
    parser.add_argument("--max-minutes", type=float, help="of the training")
    parser.add_argument("--text", default="tidy up the {colour} {shape}", help="the new sentence")
    parser.add_argument("--means", default="put the {colour} {shape} on the tray", help="what it asks for")
    parser.add_argument(
        "--pairs", choices=evaluate.SETS, default="trained", help="heldout: colour-shape pairs never named"
    )
    parser.add_argument("--demonstrations", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.3, help="of all samples, from the new demonstrations")
    parser.add_argument("--episodes", type=int, default=200, help="of the new skill")
    parser.add_argument("--before-episodes", type=int, default=50, help="of the new skill, with the start")
    parser.add_argument("--old-episodes", type=int, default=600, help="of the old suite, before and after")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations")
    parser.add_argument("--first-seed", type=int, default=300_000, help="of the scenes that are played")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", default="")
    parser.add_argument("--robot", default="panda")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options()
    a = parser.parse_args(arguments)
    for name in ("steps", "episodes", "before_episodes", "old_episodes", "demonstrations"):
        if getattr(a, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(a, name)}, allowed: >= 1")
    if not 0.0 < a.share < 1.0:
        parser.error(f"--share is {a.share}, allowed: above 0, below 1")
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        Settings(a.out / "settings.json").must_be(vars(a))
        found = measure(a)
    except (VlaError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    write_whole(a.out / "result.json", json.dumps(found, indent=1))
    write_whole(a.out / "report.md", markdown(found))
    print(markdown(found))
    return 0 if all(found["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
