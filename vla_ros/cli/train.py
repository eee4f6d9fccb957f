"""`vla train`: a policy from demonstrations, or a policy that learns something new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from vla_ros.cli import report
from vla_ros.cli.options import Json, Ray, fail_unless


def weighted(given: list[Path]) -> tuple[list[Path], list[float]]:
    """`DIR=WEIGHT` into folders and weights; no weights where none is given. Raises CliError for some and not all."""
    folders, weights = [], []
    for path in given:
        name, mark, number = str(path).rpartition("=")
        try:
            weight = float(number) if mark and not path.exists() else None
        except ValueError:
            weight = None
        folders.append(path if weight is None else Path(name))
        weights.append(weight)
    known = [weight for weight in weights if weight is not None]
    fail_unless(
        not known or (len(known) == len(weights) and all(0.0 < w < float("inf") for w in known)),
        f"data is {' '.join(map(str, given))}, allowed: DIR=WEIGHT for every folder, weights > 0, or for none",
    )
    return folders, known


def train(
    config: Annotated[Path, typer.Argument(help="Training file, say config/train/nano.yaml.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Folder of demonstrations, or DIR=WEIGHT; may be given again.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; an existing run is resumed.")],
    more_data: Annotated[Optional[list[Path]], typer.Argument(help="Further folders of demonstrations.")] = None,  # noqa: UP045
    old_data: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--old-data", help="Folder of what it knows already, mixed in as old_share of all samples."),
    ] = None,
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="Run, snapshot or policy folder whose weights a new run starts with."),
    ] = None,
    tune: Annotated[str, typer.Option(help="full, head or lora; empty: as the training file says.")] = "",
    max_minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, help="Time budget; the learning rate decays towards its end."),
    ] = None,
    forgetting: Annotated[
        int, typer.Option(min=0, help="With --from: episodes of the old suite, played before and after.")
    ] = 0,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Train a policy. Resumable at any moment: Ctrl-C saves, the same command goes on.

    Several processes: accelerate launch --num_processes N -m vla_ros.cli.main train ..."""
    with report.errors(as_json):
        try:
            from vla_ros.training import config as configs
            from vla_ros.training import train as training
            from vla_ros.training.forgetting import Forgetting
        except ModuleNotFoundError as error:
            raise report.CliError(
                f"{error.name} is not installed; training needs it: pip install -c constraints.txt 'vla_ros[train]'"
            ) from error
        settings = configs.load_config(config)
        fail_unless(tune in ("", *configs.TUNES), f"tune is {tune!r}, allowed: {', '.join(configs.TUNES)}")
        if tune:
            settings = settings.model_copy(update={"tune": tune})
        folders, weights = weighted([*data, *(more_data or [])])
        fail_unless(not (weights and old_data), "--old-data goes with folders without weights; give it a weight, too")
        fail_unless(forgetting > 0 or not ray, "--ray is for the episodes of --forgetting; training itself: accelerate")
        facts = training.train(
            settings,
            folders,
            out,
            weights=weights,
            old_folders=old_data or [],
            start=start,
            max_minutes=max_minutes,
            forgetting=Forgetting(forgetting, ray=ray) if forgetting else None,
            console=report.stderr,
        )
        report.result(as_json, facts, f"{facts['out']}: step {facts['step']}")
