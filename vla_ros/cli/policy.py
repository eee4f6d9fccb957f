"""`vla policy`: which policy the graph runs when it is told `policy_path:=installed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
