"""`vla eval`: episodes in process, or one after another through the live graph; one report for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from vla_ros.cli.live import LiveGraph, play, starting
from vla_ros.cli.report import CliError
from vla_ros.cli.stream import Recorder, stream_violations
from vla_ros.core import contract as contracts
from vla_ros.sim.tasks import FAMILIES, fill, parse
from vla_ros.training import evaluate as evaluation
from vla_ros.training.evaluate import Episode

Progress = Callable[[Episode], None]


def in_process(
    episodes: int, seed: int, *, robot: str, policy: str, family: str, text: str, workers: int, progress: Progress
) -> dict[str, Any]:
    played = evaluation.evaluate(
        episodes,
        seed,
        robot=robot,
        policy=policy or None,
        family=family or None,
        text=text or None,
        workers=workers,
        progress=progress,
    )
    return evaluation.report(played)


def through_ros(
    episodes: int,
    seed: int,
    *,
    robot: str,
    policy: str,
    family: str,
    text: str,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The same seeds and the same report in real time, every message and every process included."""
    contract = contracts.load(robot)
    families = [family] if family else list(FAMILIES)
    played: list[Episode] = []
    with LiveGraph({"robot": robot, "seed": str(seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        recorder = Recorder(client)
        for k in range(episodes):
            client.interrupt()
            named = None if not text or "{" in text else parse(text)
            client.set_parameters("sim", task=text if named else "")
            drawn = client.sim_reset(seed + k, "" if named else families[k % len(families)])
            sentence = text or str(drawn["instruction"])
            if "{" in sentence:
                task = parse(str(drawn["instruction"]))
                if task is None:
                    raise CliError(f"the simulator's sentence {drawn['instruction']!r} cannot be read back")
                sentence = fill(text, task)
            recorder.restart()
            live = play(client, sentence, evaluation.TIME_LIMIT_S, check=graph.check)
            stream, inference_s = recorder.take()
            episode = Episode(
                seed=seed + k,
                family=str(drawn["family"]),
                text=sentence,
                success=live.success,
                wrong_object=live.wrong_object,
                done=live.outcome == "done",
                duration_s=live.duration_s,
                detail=f"{live.outcome}: {live.detail or live.reason}",
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
        f"wrong object {facts['wrong_object']:.1%}; episodes with command violations: {facts['command_violations']}; "
        f"policy p50 {latency['p50']} ms, p99 {latency['p99']} ms"
    )
    return grid
