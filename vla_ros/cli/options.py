"""Options that several commands share, and how they speak."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

from vla_ros.cli import report

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Namespace = Annotated[str, typer.Option(help="Namespace of the graph.")]
Robot = Annotated[str, typer.Option(help="Contract: a shipped name, or the path of a .yaml file.")]
Policy = Annotated[str, typer.Option(help="Folder of the policy; empty: the one shipped for the robot.")]
Ray = Annotated[str, typer.Option(help="Address of a Ray cluster, or 'local'; empty: plain processes.")]
Means = Annotated[str, typer.Option(help="What a sentence in new words asks for, in words of a known family.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the scene. The same seed gives the same scene.")]


def say(line: str) -> None:
    """Progress, on stderr."""
    report.stderr.print(line, markup=False, soft_wrap=True)


def fail_unless(ok: bool, message: str, **facts: Any) -> None:
    if not ok:
        raise report.CliError(message, **facts)


class sigterm_as_interrupt:
    """SIGTERM takes the same way out as Ctrl-C: the graph that the command started is stopped."""

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)
