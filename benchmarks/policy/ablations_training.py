"""Ablations that train: one setting at a time, the same data, budget and seeds. Prints a Markdown table.

    python benchmarks/policy/ablations_training.py bridge    --data DIR --out DIR --minutes 40 --seeds 1 2 3
    python benchmarks/policy/ablations_training.py film      the words steer the cameras' features, or do not
    python benchmarks/policy/ablations_training.py objective each objective, executed with 1, 2, 5 and 10 steps
    python benchmarks/policy/ablations_training.py chunk     chunks of 1, 4, 8, 16 rows; later rows repeat the last one

The budget holds for each arm and seed: --minutes, or --steps for a budget that does not depend on the machine. With
--senses RUN every arm begins with that run's text encoder and cameras, and its transformer and head from nothing: what
is compared then takes minutes, not hours. With --head as well the transformer is given, too, and only the head learns.
With --family F an arm learns that family (of others, one sample in a thousand) and plays it; with --join naive chunks
replace each other with nothing committed, which short ones need. A run that was interrupted goes on, one that is
complete is only played again. Every arm plays every scene with every seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ablations_table import HEADER, NOTES, Arm, Scenes, compare, markdown, play
from rich.console import Console

from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.objectives import OBJECTIVES
from vla_ros.sim.tasks import FAMILIES, all_words
from vla_ros.training.config import load_config
from vla_ros.training.dataset import Dataset
from vla_ros.training.evaluate import Episode, Execution
from vla_ros.training.train import run
from vla_ros.training.trainer import Trainer

STEPS = (1, 2, 5, 10)
WITHOUT_STEPS = ("l1", "mip")  # objectives whose number of passes is fixed


@dataclass(frozen=True)
class Setting:
    """What one arm trains. `steps`: with how many denoising steps the run is played; empty: with its own."""

    label: str
    model: dict[str, Any] = field(default_factory=dict)
    rows: int = 16  # later rows repeat this one
    steps: tuple[int, ...] = ()


def objective_setting(name: str) -> Setting:
    return Setting(name, {"objective": name}, steps=() if name in WITHOUT_STEPS else STEPS)


STUDIES: dict[str, list[Setting]] = {
    "bridge": [Setting(f"bridge {kind}", {"bridge": kind}) for kind in ("all", "last", "pooled")],
    "film": [Setting("FiLM on", {"film": True}), Setting("FiLM off", {"film": False})],
    "objective": [objective_setting(name) for name in OBJECTIVES],
    "chunk": [Setting(f"{rows} rows", rows=rows) for rows in (16, 8, 4, 1)],
}


def repeat_rows(data: Dataset, rows: int) -> None:
    """Labels say nothing after row number `rows`: what comes later repeats it, so the arm goes there and waits."""
    for k, shard in enumerate(data.shards):
        chunk = np.array(shard.chunk)  # (m, R, A)
        chunk[:, rows:] = chunk[:, rows - 1 : rows]
        data.shards[k] = dataclasses.replace(shard, chunk=chunk)


def train(setting: Setting, a: argparse.Namespace, seed: int) -> Path:
    """A run folder."""
    out = a.out / a.study / setting.label.replace(" ", "_") / f"seed{seed}"
    config = load_config(a.config)
    changes: dict[str, Any] = {"seed": seed, "model": dataclasses.replace(config.model, **setting.model)}
    if a.head:
        changes |= {"tune": "head", "point_steps": 0}
    if a.family:
        changes |= {"families": {name: 1e-3 for name in FAMILIES if name != a.family}}
    config = config.model_copy(update=changes | ({"steps": a.steps} if a.steps else {}))
    contract = contracts.load(config.robot)
    data = Dataset(
        a.data, contract.hash, StateFeatures(contract).of_states, config.validation_fraction, families=config.families
    )
    repeat_rows(data, setting.rows)
    trainer = Trainer(config, data, all_words(), out, contract.hash, senses=a.senses)
    trainer.resume()
    run(trainer, a.minutes * 60 if a.minutes else None, Console(stderr=True))
    return out


def with_steps(run: Path, steps: int) -> Path:
    """The same weights, denoised in another number of steps."""
    out = run / f"steps{steps}"
    out.mkdir(exist_ok=True)
    description = json.loads((run / "policy.json").read_text())
    description["model"]["steps"] = steps
    (out / "policy.json").write_text(json.dumps(description))
    shutil.copyfile(run / "policy.safetensors", out / "policy.safetensors")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("ablations.yaml"))
    parser.add_argument(
        "--senses", type=Path, help="a run or policy whose text encoder and cameras every arm begins with"
    )
    parser.add_argument(
        "--head", action="store_true", help="only the head learns: the backbone of --senses stays as it is"
    )
    parser.add_argument("--minutes", type=float, help="training time of each arm and seed")
    parser.add_argument("--steps", type=int, help="training steps of each arm and seed instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--episodes", type=int, default=200, help="for each arm and seed; 0: train only")
    parser.add_argument("--seed", type=int, default=900, help="of the first scene")
    parser.add_argument("--family", choices=list(FAMILIES), help="all learn and play this one")
    parser.add_argument("--join", choices=["prefix", "naive"], default="prefix", help="how all are played")
    parser.add_argument("--workers", type=int, default=1)
    a = parser.parse_args()
    if not (a.minutes or a.steps):
        parser.error("a budget is needed: --minutes or --steps")
    if a.head and (not a.senses or a.study == "film"):
        parser.error("--head: needs --senses, and FiLM is a part of what would be given")
    scenes = Scenes(a.episodes, a.seed, a.family, workers=a.workers)
    arms: list[Arm] = []
    played: dict[str, list[Episode]] = {}
    try:
        for setting in STUDIES[a.study]:
            runs = [train(setting, a, seed) for seed in a.seeds]
            for steps in setting.steps or (None,):
                label = setting.label if steps is None else f"{setting.label}, {steps} steps"
                arms.append(Arm(label, Execution(a.join), against=arms[0].label if arms else None))
                folders = runs if steps is None else [with_steps(run, steps) for run in runs]
                each = (
                    [play([arms[-1]], scenes, str(folder), "torch")[label] for folder in folders] if a.episodes else []
                )
                played[label] = [episode for episodes in each for episode in episodes]
    except VlaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    budget = f"{a.minutes:g} minutes" if a.minutes else f"{a.steps} steps"
    learned = "the head, backbone given" if a.head else "transformer and head, senses given"
    budget += " of training" + (f" for {learned}" if a.senses else "")
    print(f"{a.study}: {budget}; training seeds {a.seeds}, {a.episodes} scenes from {a.seed} each, {a.join} joins\n")
    print(markdown(HEADER, compare(arms, played)) + "\n\n" + NOTES)


if __name__ == "__main__":
    main()
