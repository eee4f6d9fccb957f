"""A graph of one's own for a command: started in a private ROS domain, watched, driven, and stopped again."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_ros.cli.client import SIM_NODES, GraphClient
from vla_ros.cli.launch_runner import LaunchSession
from vla_ros.cli.report import CliError
from vla_ros.core.contract import Contract
from vla_ros.core.types import FloatArray
from vla_ros.msg import ActionChunk, SafeCommand, SafetyState
from vla_ros.nodes.conversions import doubles, stamp_ns

READY_TIMEOUT_S = 90.0  # a loaded machine with software rendering
OUTCOME_PERIOD_S = 0.25  # how often the world is asked for its verdict
LINGER_S = 2.0  # a task that stays fulfilled this long ends the run even if the policy never says so
DOMAINS = range(60, 101)  # below the ephemeral ports; small numbers are what people choose by hand


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
        self.client: GraphClient

    def start(self, progress: Callable[[dict[str, str]], None] = lambda states: None) -> GraphClient:
        self.session.start()
        self.client = GraphClient(domain_id=self.domain_id)
        self.client.wait_active(SIM_NODES, READY_TIMEOUT_S, progress, self.check)
        return self.client

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
class Stream:
    """SafeCommands as they arrived. Times: `received_s` on our steady clock, `at_ns` as the supervisor stamped them."""

    received_s: list[float] = field(default_factory=list)
    at_ns: list[int] = field(default_factory=list)
    q_rad: list[FloatArray] = field(default_factory=list)
    qd_rad_s: list[FloatArray] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)


class Recorder:
    """Listens to commands and chunks. The spinning thread appends; `take` hands over what has come since `restart`."""

    def __init__(self, client: GraphClient) -> None:
        self.lock = threading.Lock()
        self.stream = Stream()
        self.inference_s: list[float] = []
        client.subscribe(SafeCommand, "safe_command", "safe_command", self._on_command)
        client.subscribe(ActionChunk, "action_chunk", "action_chunk", self._on_chunk)

    def restart(self) -> None:
        with self.lock:
            self.stream, self.inference_s = Stream(), []

    def take(self) -> tuple[Stream, list[float]]:
        """Commands and inference times so far; they go on being recorded in a new stream."""
        with self.lock:
            taken = (self.stream, self.inference_s)
            self.stream, self.inference_s = Stream(), []
        return taken

    def _on_command(self, message: SafeCommand) -> None:
        now_s = time.monotonic()
        with self.lock:
            stream = self.stream
            stream.received_s.append(now_s)
            stream.at_ns.append(stamp_ns(message.stamp))
            stream.q_rad.append(doubles(message.position))
            stream.qd_rad_s.append(doubles(message.velocity))
            stream.mode.append(message.mode)
            stream.sequence.append(message.sequence)

    def _on_chunk(self, message: ActionChunk) -> None:
        with self.lock:
            self.inference_s.append(message.inference_time)


def stream_violations(stream: Stream, contract: Contract) -> list[str]:
    """Check a recorded live stream: finite, position, velocity, acceleration and jerk.

    Live ticks are not equidistant. Differences are taken of the commanded velocities, over the step that the limiter
    integrated (measured, at most two periods); the tolerance grows where the rounding of stamps weighs (short steps).
    Runs of missing samples are left out: two commands that are not neighbours say nothing about one tick.
    """
    if len(stream.at_ns) < 4:
        return []
    q, v = np.array(stream.q_rad), np.array(stream.qd_rad_s)
    if not (np.isfinite(q).all() and np.isfinite(v).all()):
        return ["a command is not finite"]
    limits, found = contract.limits, []
    step = np.diff(np.array(stream.at_ns)) * 1e-9
    if not (step > 0.0).all():
        found.append("stamps do not increase")
        return found
    dt = np.minimum(step, 2.0 * contract.period_s)[:, None]
    next_to = (np.diff(stream.sequence) == 1)[:, None]
    between = 0.5 * (dt[1:] + dt[:-1])  # mean accelerations of two ticks lie this far apart
    a = np.where(next_to, np.diff(v, axis=0) / dt, 0.0)
    j = np.where(next_to[1:] & next_to[:-1], np.diff(a, axis=0) / between, 0.0)
    stamp_rounding_s = 2e-9  # both ends of a step
    a_slack = limits.a_max_rad_s2 * (1e-3 + stamp_rounding_s / dt)
    j_slack = limits.j_max_rad_s3 * 1e-3 + (a_slack[1:] - limits.a_max_rad_s2 * 1e-3) * 2.0 / between
    checks = (
        ("position", np.maximum(limits.q_lo_rad - q, q - limits.q_hi_rad), 1e-9),
        ("velocity", np.abs(v) - limits.v_max_rad_s, 1e-9),
        ("acceleration", np.abs(a) - limits.a_max_rad_s2, a_slack),
        ("jerk", np.abs(j) - limits.j_max_rad_s3, j_slack),
    )
    for name, excess, slack in checks:
        worst = float((excess - slack).max())
        if worst > 0.0:
            found.append(f"{name} {worst:.3g} above its limit")
    return found


@dataclass
class LiveEpisode:
    """One instruction through the live graph."""

    text: str
    instruction_id: int = 0
    outcome: str = ""  # done, fulfilled, timeout, stopped, refused
    reason: str = ""
    success: bool = False
    wrong_object: bool = False
    detail: str = ""
    duration_s: float = 0.0


Update = Callable[[SafetyState, float], None]


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


def percentiles(values: Sequence[float], *, unit: float = 1e3) -> dict[str, float]:
    """p50, p99 and max, in milliseconds for seconds."""
    if not values:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    array = np.asarray(values, dtype=np.float64) * unit
    p50, p99 = np.percentile(array, (50.0, 99.0))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(array.max()), 2)}


def loop_report(before: SafetyState, after: SafetyState) -> dict[str, Any]:
    """Control loop of the supervisor between two states."""
    span_s = (stamp_ns(after.stamp) - stamp_ns(before.stamp)) * 1e-9
    ticks = after.ticks - before.ticks
    return {
        "rate_hz": round(ticks / span_s, 2) if span_s > 0.0 else 0.0,
        "ticks": ticks,
        "late_ticks": after.late_ticks - before.late_ticks,
    }
