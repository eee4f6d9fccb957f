"""`vla eval`: episodes in process, or one after another through the live graph; one report for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from vla_ros.cli.live import LiveGraph, play, starting
from vla_ros.cli.report import stderr
from vla_ros.cli.stream import Recorder, stream_violations
from vla_ros.core import contract as contracts
from vla_ros.sim.tasks import parse
from vla_ros.training import evaluate as evaluation
from vla_ros.training.evaluate import Episode

Progress = Callable[[Episode], None]


def in_process(
    planned: Sequence[evaluation.Trial],
    *,
    robot: str,
    policy: str,
    runtime: str,
    execution: evaluation.Execution,
    workers: int,
    ray: str,
    bar: bool,
    progress: Progress,
) -> dict[str, Any]:
    played = evaluation.evaluate(
        planned,
        robot=robot,
        policy=policy or None,
        runtime=runtime,
        execution=execution,
        workers=workers,
        ray=ray,
        progress=progress,
        console=stderr if bar else None,
    )
    return evaluation.report(played)


def through_ros(
    planned: Sequence[evaluation.Trial],
    *,
    robot: str,
    policy: str,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The same seeds and the same report in real time, every message and every process included."""
    contract = contracts.load(robot)
    played: list[Episode] = []
    with LiveGraph({"robot": robot, "seed": str(planned[0].seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        recorder = Recorder(client)
        for trial in planned:
            client.interrupt()
            asked = trial.means or trial.text
            named = asked if asked is not None and parse(asked) is not None else ""
            client.set_parameters("sim", task=named)
            drawn = client.sim_reset(trial.seed, "" if named else str(trial.family))
            sentence = trial.text or str(drawn["instruction"])
            recorder.restart()
            live = play(client, sentence, evaluation.TIME_LIMIT_S, check=graph.check)
            stream, inference_s = recorder.take()
            episode = Episode(
                seed=trial.seed,
                family=str(drawn["family"]),
                text=sentence,
                success=live.success,
                wrong_object=live.wrong_object,
                wrong_direction=live.wrong_direction,
                done=live.outcome == "done",
                duration_s=live.duration_s,
                detail=live.ending,
                violations=stream_violations(stream, contract),
                inference_s=inference_s,
            )
            played.append(episode)
            progress(episode)
        state = client.state
    report = evaluation.report(played)
    if state is not None:
        report["control_loop"] = {"ticks": state.ticks, "late_ticks": state.late_ticks}
    return report


def table(facts: dict[str, Any]) -> Table:
    grid = Table(box=None)
    for heading in ("family", "episodes", "success", "95 % interval"):
        grid.add_column(heading)
    for name, row in (*facts["families"].items(), ("all", {**facts, "n": facts["episodes"]})):
        low, high = row["wilson"]
        grid.add_row(name, str(row["n"]), f"{row['success']:.1%}", f"{low:.1%} to {high:.1%}")
    latency = facts["policy_latency_ms"]
    grid.caption = (
        f"wrong object {facts['wrong_object']:.1%}, wrong direction {facts['wrong_direction']:.1%}; "
        + (f"went where told {facts['swap_obeyed']:.1%}; " if facts["swap_obeyed"] is not None else "")
        + f"episodes with command violations: {facts['command_violations']}; "
        f"policy p50 {latency['p50']} ms, p99 {latency['p99']} ms"
    )
    return grid
