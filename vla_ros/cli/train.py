"""`vla train`: a policy from demonstrations, or a policy that learns something new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from vla_ros.cli import report
from vla_ros.cli.options import Json, fail_unless


def train(
    config: Annotated[Path, typer.Argument(help="Training file, say config/train/nano.yaml.")],
    data: Annotated[list[Path], typer.Option("--data", help="Folder of demonstrations; may be given again.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder; an existing run is resumed.")],
    more_data: Annotated[Optional[list[Path]], typer.Argument(help="Further folders of demonstrations.")] = None,  # noqa: UP045
    old_data: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--old-data", help="Folder of what it knows already, mixed in as old_share of every batch."),
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
    as_json: Json = False,
) -> None:
    """Train a policy. Resumable at any moment: Ctrl-C saves, the same command goes on.

    Several processes: accelerate launch --num_processes N -m vla_ros.cli.main train ..."""
    with report.errors(as_json):
        try:
            from vla_ros.training import config as configs
            from vla_ros.training import train as training
        except ModuleNotFoundError as error:
            raise report.CliError(
                f"{error.name} is not installed; training needs it: pip install -c constraints.txt 'vla_ros[train]'"
            ) from error
        settings = configs.load_config(config)
        fail_unless(tune in ("", *configs.TUNES), f"tune is {tune!r}, allowed: {', '.join(configs.TUNES)}")
        if tune:
            settings = settings.model_copy(update={"tune": tune})
        facts = training.train(
            settings,
            [*data, *(more_data or [])],
            out,
            old_folders=old_data or [],
            start=start,
            max_minutes=max_minutes,
            console=report.stderr,
        )
        report.result(as_json, facts, f"{facts['out']}: step {facts['step']}")
