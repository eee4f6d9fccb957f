"""`vla bench`: the commands. What they measure is in `bench_*.py`, imported by the command that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vla_ros.cli import report
from vla_ros.cli.options import Json, Policy, Robot, Seed, fail_unless, say, sigterm_as_interrupt

app = typer.Typer(no_args_is_help=True, help="Measure the live graph.")
Markdown = Annotated[Optional[Path], typer.Option(help="Also write the table to this file.")]  # noqa: UP045
FALSE_STOP_MINUTES = 10.0  # issue of the benchmark: ten minutes of normal tasks


@app.command()
def stop(
    n: Annotated[int, typer.Option(min=1, max=10_000, help="Trials by each path.")] = 50,
    paths: Annotated[str, typer.Option(help="Comma-separated; empty: every path, and the false stops.")] = "",
    false_stop_minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, max=600.0, help="Normal work to count false stops in; 10, or 0 with --paths."),
    ] = None,
    markdown: Markdown = None,
    seed: Seed = 1000,
    policy: Policy = "",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Stop the arm at random phases of real motion, by every path: time to react and to rest, and false stops."""
    from vla_ros.cli import bench_stop
    from vla_ros.cli.stop_paths import PATHS

    with sigterm_as_interrupt(), report.errors(as_json):
        chosen = [name.strip() for name in paths.split(",") if name.strip()] or list(PATHS)
        unknown = [name for name in chosen if name not in PATHS]
        fail_unless(not unknown, f"paths: {', '.join(unknown)} unknown, allowed: {', '.join(PATHS)}")
        minutes = false_stop_minutes
        if minutes is None:
            minutes = 0.0 if paths else FALSE_STOP_MINUTES
        facts = bench_stop.run(n, chosen, minutes, robot=robot, policy=policy, seed=seed, say=say)
        _write(markdown, bench_stop.table(facts))
        report.result(as_json, facts, bench_stop.table(facts))


@app.command()
def loop(
    seconds: Annotated[float, typer.Option(min=5.0, max=3600.0)] = 30.0,
    seed: Seed = 2000,
    policy: Policy = "",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Punctuality of the control loops and memory of the graph, while the policy infers and the arm moves."""
    from vla_ros.cli import bench_loop

    with sigterm_as_interrupt(), report.errors(as_json):
        facts = bench_loop.run(seconds, robot=robot, policy=policy, seed=seed, say=say)
        lines = [
            f"{name}: {loop['rate_hz']} Hz, {loop['late_ticks']} of {loop['ticks']} ticks late, "
            f"delay p99 {loop['delay_p99_ms']} ms, max {loop['delay_max_ms']} ms"
            for name, loop in facts["loops"].items()
        ]
        memory = (
            f"resident without sim: {facts['rss_total_mb']} MB; real-time factor {facts['sim']['real_time_factor']}"
        )
        report.result(as_json, facts, "\n".join([*lines, memory]))


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.5, max=10_000.0)] = 30.0,
    markdown: Markdown = None,
    seed: Seed = 3000,
    policy: Policy = "",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Random instructions, interrupts, restarts and faults: memory, missed ticks, shared memory, invariants."""
    from vla_ros.cli import bench_soak

    with sigterm_as_interrupt(), report.errors(as_json):
        facts = bench_soak.run(minutes, robot=robot, policy=policy, seed=seed, say=say)
        _write(markdown, bench_soak.table(facts))
        fail_unless(not facts["violations"], f"{facts['violations']} violations", **facts)
        report.result(as_json, facts, bench_soak.table(facts))


@app.command()
def policy(
    n: Annotated[int, typer.Option(min=1, max=100_000)] = 200,
    runtimes: Annotated[
        str, typer.Option(help="Comma-separated: int8, fp32, fp16, openvino, torch, ...")
    ] = "int8,fp32",
    run: Annotated[Optional[Path], typer.Option(help="Training run, for the torch runtimes.")] = None,  # noqa: UP045
    markdown: Markdown = None,
    policy: Policy = "",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Latency, throughput, size and memory of the policy on each runtime, one thread; estimates for other machines."""
    from vla_ros.cli import bench_policy
    from vla_ros.policy.runtimes import RUNTIMES

    with report.errors(as_json):
        chosen = [name.strip() for name in runtimes.split(",") if name.strip()]
        unknown = [name for name in chosen if name not in RUNTIMES]
        fail_unless(bool(chosen) and not unknown, f"runtimes is {runtimes!r}, allowed: {', '.join(RUNTIMES)}")
        facts = bench_policy.run(n, robot=robot, policy=policy, runtimes=chosen, run_folder=run)
        _write(markdown, bench_policy.table(facts))
        report.result(as_json, facts, bench_policy.table(facts))


def _write(path: Path | None, text: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text), encoding="utf-8")
