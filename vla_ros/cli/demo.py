"""`vla demo`: the whole graph, one sentence, a live view, the world's verdict and a video."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sensor_msgs.msg import Image

from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveEpisode, LiveGraph, loop_report, play
from vla_ros.cli.record import ask
from vla_ros.cli.report import CliError, stderr
from vla_ros.cli.stream import Recorder, percentiles, stream_violations
from vla_ros.cli.video import Video
from vla_ros.core import contract as contracts
from vla_ros.core.types import Severity
from vla_ros.msg import SafetyState
from vla_ros.nodes.conversions import rgb_pixels
from vla_ros.sim.tasks import parse

BAR_CELLS = 24
SEVERITY_STYLE = {0: "green", 1: "yellow", 2: "yellow", 3: "bold red", 4: "bold red"}


class Screen:
    """Live display on a terminal; plain lines on change elsewhere. Everything goes to stderr."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain or not stderr.is_terminal
        self._live = None if self._plain else Live(console=stderr, refresh_per_second=10, transient=False)
        self._said = ""

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            (self._live.console if self._live is not None else stderr).print(line, markup=False, soft_wrap=True)

    def nodes(self, states: dict[str, str]) -> None:
        if self._live is None:
            ready = [name for name, state in states.items() if state == "active"]
            self.say(f"starting the graph: {len(ready)} of {len(states)} nodes active ({', '.join(ready) or 'none'})")
            return
        table = Table.grid(padding=(0, 2))
        for name, state in states.items():
            mark = {"active": "[green]●[/] ", "absent": "[dim]○[/] "}.get(state, "[yellow]◐[/] ")
            table.add_row(mark + name, "starting" if state == "absent" else state)
        self._live.update(Group(Text("starting the graph", style="bold"), table))

    def motion(self, text: str, state: SafetyState, latency_ms: float, elapsed_s: float) -> None:
        severity = Severity(state.severity).name
        if self._live is None:
            self.say(f"{state.phase}: severity {severity}{f' ({state.reason})' if state.reason else ''}")
            return
        table = Table.grid(padding=(0, 2))
        table.add_row("sentence", Text(text, style="bold"))
        table.add_row("phase", f"{state.phase}   [dim]{elapsed_s:5.1f} s[/]")
        style = SEVERITY_STYLE[state.severity]
        table.add_row("severity", f"[{style}]{severity}[/] {state.reason}")
        table.add_row("tool speed", _bar(state.tool_speed / 0.5) + f" {state.tool_speed * 1e3:4.0f} mm/s")
        table.add_row("done", _bar(state.done_probability) + f" {state.done_probability * 100:4.0f} %")
        table.add_row(
            "policy", f"{latency_ms:.1f} ms a chunk, {state.chunks_accepted} taken, {state.chunks_rejected} refused"
        )
        table.add_row("control loop", f"{state.ticks} ticks, {state.late_ticks} late")
        self._live.update(table)


def _bar(share: float) -> str:
    cells = round(min(max(share, 0.0), 1.0) * BAR_CELLS)
    return "━" * cells + "[dim]" + "─" * (BAR_CELLS - cells) + "[/]"


def run(
    *,
    text: str | None,
    means: str,
    seed: int,
    video: Path | None,
    record: Path | None,
    timeout_s: float,
    policy: str,
    robot: str,
    quiet: bool,
    verbose: bool,
) -> dict[str, Any]:
    """The facts of one demonstration; `success` says whether the world agrees."""
    contract = contracts.load(robot)
    arguments = {"robot": robot, "seed": str(seed), "policy": policy}
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
        arguments |= {"record": "true", "record_folder": str(record.absolute())}
    started_s = time.monotonic()
    echo = (lambda line: stderr.print(line, markup=False, soft_wrap=True)) if verbose else None
    with LiveGraph(arguments, echo) as graph, Screen(plain=quiet or verbose) as screen:
        client = graph.start(screen.nodes)
        screen.say(f"graph ready after {time.monotonic() - started_s:.1f} s")
        sentence = _sentence(client, text, means, seed)
        film = _film(client, video, [camera.name for camera in contract.cameras], contract.cameras[0].rate_hz, sentence)
        recorder = Recorder(client)
        if record is not None:
            ask(client, "START", text=sentence, operator_name="vla demo")
        screen.say("rearming: from here on the arm may move")
        episode, before = _play(client, screen, sentence, timeout_s, graph.check)
        stream, inference_s = recorder.take()
        facts = _facts(client, inference_s, episode, before)
        facts["command_violations"] = stream_violations(stream, contract)
        facts["episode"] = _keep(client, episode) if record is not None else None
        client.interrupt_topic()  # whatever it holds, it holds still while the graph goes down
        path = film.close() if film is not None else None
        facts["video"] = str(path) if path is not None else None
    return facts


def _sentence(client: GraphClient, text: str | None, means: str, seed: int) -> str:
    if text is None:
        return str(client.sim_outcome()["instruction"])
    asked = means or text
    if parse(asked) is not None:  # the scene gets what is named; a sentence we cannot read is the policy's to judge
        client.set_parameters("sim", task=asked)
        client.sim_reset(seed)
    return text


def _film(client: GraphClient, path: Path | None, cameras: list[str], fps: float, caption: str) -> Video | None:
    if path is None:
        return None
    film = Video(path, cameras, fps)
    film.caption = caption
    for name in cameras:
        client.subscribe(Image, f"camera/{name}/image_raw", "image", lambda m, n=name: film.add(n, rgb_pixels(m)))
    return film


def _play(
    client: GraphClient, screen: Screen, sentence: str, timeout_s: float, check: Callable[[], None]
) -> tuple[LiveEpisode, SafetyState]:
    before = client.wait_until(lambda: client.state, 5.0, "no safety_state from the supervisor")

    def update(state: SafetyState, elapsed_s: float) -> None:
        latency_ms = client.policy.latency_p50 * 1e3 if client.policy is not None else 0.0
        screen.motion(sentence, state, latency_ms, elapsed_s)

    return play(client, sentence, timeout_s, update, check), before


def _keep(client: GraphClient, episode: LiveEpisode) -> str:
    """The world's own verdict goes into the episode. Returns its folder."""
    kept = ask(
        client, "KEEP", instruction_id=episode.instruction_id, outcome=episode.outcome, success=int(episode.success),
        outcome_reason=episode.reason,
    )  # fmt: skip
    return str(kept["episode"])


def _facts(client: GraphClient, inference_s: list[float], episode: LiveEpisode, before: SafetyState) -> dict[str, Any]:
    after = client.state
    if after is None:
        raise CliError("the supervisor's state was lost")
    latency = percentiles(inference_s)
    return {
        "text": episode.text,
        "instruction_id": episode.instruction_id,
        "outcome": episode.outcome,
        "success": episode.success,
        "wrong_object": episode.wrong_object,
        "wrong_direction": episode.wrong_direction,
        "reason": episode.reason,
        "detail": episode.detail,
        "duration_s": round(episode.duration_s, 2),
        "policy_latency_ms": {"p50": latency["p50"], "p99": latency["p99"]},
        "policy_precision": client.policy.precision if client.policy is not None else "",
        "control_loop": loop_report(before, after),
        "chunks": {"accepted": after.chunks_accepted, "rejected": after.chunks_rejected},
    }
