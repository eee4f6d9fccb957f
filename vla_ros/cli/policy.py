"""`vla policy`: which policy the graph runs when it is told `policy_path:=installed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from vla_ros.cli import report
from vla_ros.cli.options import Json, Robot, Seed, say, sigterm_as_interrupt

if TYPE_CHECKING:
    from vla_ros.policy.install import Installed

app = typer.Typer(no_args_is_help=True, help="Install policies, switch between them, go back.")


def _installed(robot: str) -> Installed:
    from vla_ros import paths
    from vla_ros.core import contract as contracts
    from vla_ros.policy.install import Installed

    return Installed(paths.installed_policies(), contracts.load(robot))


@app.command()
def install(
    folder: Annotated[Path, typer.Argument(help="A policy folder, as `vla quantize` writes it.")],
    episodes: Annotated[int, typer.Option(min=6, max=1000, help="Smoke episodes, families in turn.")] = 6,
    seed: Seed = 0,
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Check a policy (contract, hashes, quantization report, smoke episodes), then switch to it at once."""
    with sigterm_as_interrupt(), report.errors(as_json):
        from vla_ros.policy.install import Smoke
        from vla_ros.training.evaluate import evaluate, trials

        def smoke(copy: Path) -> Smoke:
            say(f"{episodes} smoke episodes")
            played = evaluate(trials(episodes, seed), robot=robot, policy=str(copy))
            return Smoke(len(played), sum(e.success for e in played), sum(bool(e.violations) for e in played))

        policies = _installed(robot)
        name = policies.install(folder, smoke)
        facts = {"installed": name, "link": str(policies.link)}
        report.result(as_json, facts, f"installed {name}; a graph with policy_path:=installed takes it when idle")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A policy folder.")],
    results: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="JSON of benchmarks/policy/bars.py or of vla eval; may be given again."),
    ] = None,
    machine: Annotated[str, typer.Option(help="What it was trained on, say '2 cores of a Xeon with AVX-512'.")] = "",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Write MODEL_CARD.md of a policy, from its manifest and what was measured."""
    with report.errors(as_json):
        from vla_ros.core import contract as contracts
        from vla_ros.policy import card as cards
        from vla_ros.policy.manifest import read

        manifest = read(folder, contracts.load(robot).hash)
        measured = []
        for path in results or []:
            try:
                measured.append((path, json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError) as error:
                raise report.CliError(f"{path}: not readable as JSON ({error})") from None
        text = cards.card(manifest, measured, machine)
        target = folder / cards.NAME
        fresh = target.with_name("." + target.name)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(target)
        report.result(as_json, {"card": str(target)}, f"wrote {target}")


@app.command(name="list")
def list_(robot: Robot = "panda", as_json: Json = False) -> None:
    """What is installed, and which one is current."""
    with report.errors(as_json):
        policies = _installed(robot)
        facts = {"current": policies.current(), "installed": policies.names(), "history": policies.history()}
        lines = [f"{'*' if name == facts['current'] else ' '} {name}" for name in policies.names()]
        report.result(as_json, facts, "\n".join(lines) or "nothing is installed; the graph runs the shipped policy")


@app.command()
def rollback(robot: Robot = "panda", as_json: Json = False) -> None:
    """Back to the policy before this one."""
    with report.errors(as_json):
        name = _installed(robot).rollback()
        report.result(as_json, {"current": name}, f"current: {name}")
