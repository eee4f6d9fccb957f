"""A graph of one's own for a command: started in a private ROS domain, watched, driven, and stopped again."""

from __future__ import annotations

import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_ros.cli.client import SIM_NODES, GraphClient
from vla_ros.cli.launch_runner import LaunchSession
from vla_ros.cli.report import CliError, Unreachable
from vla_ros.msg import SafetyState
from vla_ros.nodes.conversions import stamp_ns

READY_TIMEOUT_S = 90.0  # a loaded machine with software rendering
OUTCOME_PERIOD_S = 0.25  # how often the world is asked for its verdict
LINGER_S = 2.0  # a task that stays fulfilled this long ends the run even if the policy never says so
DOMAINS = range(60, 101)  # below the ephemeral ports; small numbers are what people choose by hand
MOVING_M_S = 0.03  # the arm moves when its tool is commanded faster than this
MOTION_TIMEOUT_S = 8.0
Say = Callable[[str], None]


def starting(say: Say) -> Callable[[dict[str, str]], None]:
    """Progress of a graph that starts, one line for each node more."""
    seen: list[int] = []

    def progress(states: dict[str, str]) -> None:
        active = sum(state == "active" for state in states.values())
        if not seen or seen[-1] != active:
            seen.append(active)
            say(f"{active} of {len(states)} nodes active")

    return progress


def free_domain() -> int:
    """A ROS domain whose first discovery port nobody uses on this machine."""
    for domain in random.sample(list(DOMAINS), len(DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))  # RTPS well-known ports
            except OSError:
                continue
            return domain
    raise CliError(f"no free ROS domain between {DOMAINS.start} and {DOMAINS.stop - 1} on this machine")


class LiveGraph:
    """The sim graph of one command. `start` shows progress; `stop` always leaves nothing behind."""

    def __init__(self, arguments: Mapping[str, str], echo: Callable[[str], None] | None = None) -> None:
        self.domain_id = free_domain()
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(self.domain_id),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"  # for our own participant
        self._errors: deque[str] = deque(maxlen=30)
        self._echo = echo
        self.session = LaunchSession("sim", arguments, output=self._line, environment=environment)
        self._nodes = (*SIM_NODES, "recorder") if arguments.get("record") == "true" else SIM_NODES
        self.client: GraphClient

    def start(self, progress: Callable[[dict[str, str]], None] = lambda states: None) -> GraphClient:
        self.session.start()
        self.client = GraphClient(domain_id=self.domain_id)
        self.client.wait_active(self._nodes, READY_TIMEOUT_S, progress, self.check)
        return self.client

    def kill(self, name: str) -> float:
        """SIGKILL to a node, as a crash would end it. Returns the steady time just before the signal."""
        return self.session.kill(name)

    def restart(self, name: str) -> None:
        """A killed node again, active."""
        self.client.health.pop(name, None)  # of its earlier life
        self.session.start_again(name)
        self.client.wait_active((name,), READY_TIMEOUT_S, check=self.check)

    def check(self) -> None:
        """Raises when a process has ended by itself."""
        self.session.running()
        for name, code in self.session.ended_early.items():
            tail = "\n".join(self.session.tail(name)[-6:])
            raise CliError(f"process {name} ended by itself, exit code {code}:\n{tail}")

    def stop(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        self.session.stop()

    def _line(self, name: str, line: str) -> None:
        if self._echo is not None:
            self._echo(f"[{name}] {line}")

    def __enter__(self) -> LiveGraph:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@dataclass
class LiveEpisode:
    """One instruction through the live graph."""

    text: str
    instruction_id: int = 0
    outcome: str = ""  # done, fulfilled, timeout, stopped, refused
    reason: str = ""
    success: bool = False
    wrong_object: bool = False
    wrong_direction: bool = False
    detail: str = ""
    duration_s: float = 0.0

    @property
    def ending(self) -> str:
        """How it ended, then why, then what the world shows; what is not known is left out."""
        return f"{self.outcome}: {'; '.join(filter(None, (self.reason, self.detail)))}"


Update = Callable[[SafetyState, float], None]


def fresh_motion(client: GraphClient, seed: int, begin: Callable[[str], None] | None = None) -> None:
    """A new scene, a new instruction, and the arm on its way. `begin(text)` gives it; without one the service does."""
    client.interrupt()
    drawn = client.sim_reset(seed)
    rearmed = client.rearm()
    if not rearmed.success:
        raise CliError(f"rearm was refused: {rearmed.message}")
    (begin or client.instruct_or_fail)(str(drawn["instruction"]))
    try:
        client.wait_until(
            lambda: client.state is not None and client.state.tool_speed > MOVING_M_S,
            MOTION_TIMEOUT_S,
            "the arm did not begin to move",
        )
    except Unreachable as error:
        shown = f"phase {client.state.phase}, reason {client.state.reason!r}" if client.state else "no state"
        raise CliError(f"{error} ({shown})") from None


def play(
    client: GraphClient,
    text: str,
    timeout_s: float,
    update: Update = lambda state, elapsed_s: None,
    check: Callable[[], None] = lambda: None,
) -> LiveEpisode:
    """Rearm, instruct, watch until it ends, ask the world. A refusal is an outcome, not an exception."""
    episode = LiveEpisode(text)
    rearmed = client.rearm()
    if not rearmed.success:
        raise CliError(f"rearm was refused: {rearmed.message}")
    answer = client.instruct(text)
    if not answer.accepted:
        episode.outcome, episode.reason = "refused", answer.reason
        return episode
    episode.instruction_id = answer.instruction_id
    started_s = time.monotonic()
    fulfilled_at_s: float | None = None
    asked_at_s = started_s
    while not episode.outcome:
        check()
        now_s = time.monotonic()
        state = client.state
        if state is not None:
            update(state, now_s - started_s)
            episode.outcome, episode.reason = _ended(state, answer.instruction_id)
            if episode.reason == "arm_latched" and client.arm is not None:
                episode.reason += f": {client.arm.reason}"  # the arm controller saw it first and knows why
        if now_s - asked_at_s >= OUTCOME_PERIOD_S:
            asked_at_s = now_s
            if not client.sim_outcome()["success"]:
                fulfilled_at_s = None
            elif fulfilled_at_s is None:
                fulfilled_at_s = now_s
            elif now_s - fulfilled_at_s > LINGER_S:
                episode.outcome = episode.outcome or "fulfilled"
        if now_s - started_s > timeout_s:
            episode.outcome = episode.outcome or "timeout"
            episode.reason = episode.reason or f"not done within {timeout_s:g} s"
        client.wait_until(lambda seen=state: client.state is not seen, OUTCOME_PERIOD_S)
    episode.duration_s = time.monotonic() - started_s
    verdict = client.sim_outcome()
    episode.success, episode.wrong_object = bool(verdict["success"]), bool(verdict["wrong_object"])
    episode.wrong_direction = bool(verdict["wrong_direction"])
    episode.detail = str(verdict["detail"])
    return episode


def _ended(state: SafetyState, instruction_id: int) -> tuple[str, str]:
    if state.phase == "done":
        return "done", ""
    if state.severity >= SafetyState.SEVERITY_STOP:
        return "stopped", state.reason
    if state.instruction_id > instruction_id:
        return "stopped", f"instruction {state.instruction_id} took over"
    return "", ""


def loop_report(before: SafetyState, after: SafetyState) -> dict[str, Any]:
    """Control loop of the supervisor between two states."""
    span_s = (stamp_ns(after.stamp) - stamp_ns(before.stamp)) * 1e-9
    ticks = after.ticks - before.ticks
    return {
        "rate_hz": round(ticks / span_s, 2) if span_s > 0.0 else 0.0,
        "ticks": ticks,
        "late_ticks": after.late_ticks - before.late_ticks,
    }
