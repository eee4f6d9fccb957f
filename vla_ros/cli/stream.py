"""What a listener records of the live graph, and what must hold for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from vla_ros.cli.client import GraphClient
from vla_ros.core.contract import Contract
from vla_ros.core.rules import Reason
from vla_ros.core.types import FloatArray
from vla_ros.msg import ActionChunk, SafeCommand, SafetyEvent
from vla_ros.nodes.conversions import doubles, stamp_ns


@dataclass
class Stream:
    """SafeCommands as they arrived. Times: `received_s` by the middleware, on our steady clock; `at_ns` as the
    supervisor stamped them; `anew_ns` the same where a tracking fault began."""

    received_s: list[float] = field(default_factory=list)
    at_ns: list[int] = field(default_factory=list)
    q_rad: list[FloatArray] = field(default_factory=list)
    qd_rad_s: list[FloatArray] = field(default_factory=list)
    gripper_m: list[float] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)
    writer_id: list[int] = field(default_factory=list)
    anew_ns: list[int] = field(default_factory=list)  # not one for each command

    def parts(self) -> Iterator[Stream]:
        """The commands of each supervisor, one after another: a restarted one counts and stamps anew. Cut where a
        tracking fault began: there the stop starts from the measured state (C5)."""
        names = [f.name for f in fields(Stream) if f.name != "anew_ns"]
        faults = [sum(t <= at for t in self.anew_ns) for at in self.at_ns]
        lives = list(zip(self.writer_id, faults, strict=True))
        for life in dict.fromkeys(lives):
            rows = [k for k, other in enumerate(lives) if other == life]
            yield Stream(**{name: [getattr(self, name)[k] for k in rows] for name in names})


class Recorder:
    """Listens to commands and chunks. The spinning thread appends; `take` hands over what has come since `restart`."""

    def __init__(self, client: GraphClient) -> None:
        self.lock = threading.Lock()
        self._client = client
        self.stream = Stream()
        self.inference_s: list[float] = []
        self.inferred_at_s: list[float] = []  # steady time of receipt of the chunks that `inference_s` belongs to
        client.record(SafeCommand, "safe_command", "safe_command", self._on_command)
        client.record(SafetyEvent, "safety_event", "safety_event", self._on_event)
        client.subscribe(ActionChunk, "action_chunk", "action_chunk", self._on_chunk)

    def restart(self) -> None:
        with self.lock:
            self.stream, self.inference_s, self.inferred_at_s = Stream(), [], []

    def take(self) -> tuple[Stream, list[float]]:
        """Commands and inference times so far; they go on being recorded in a new stream."""
        with self.lock:
            taken = (self.stream, self.inference_s)
            self.stream, self.inference_s, self.inferred_at_s = Stream(), [], []
        return taken

    def first(self, modes: Sequence[int], after_s: float = -np.inf) -> float | None:
        """Steady time of receipt of the first command in one of `modes` after `after_s`."""
        with self.lock:
            received = zip(self.stream.received_s, self.stream.mode, strict=False)
            return next((t for t, mode in received if t > after_s and mode in modes), None)

    def in_inference(self, event_s: float) -> bool:
        """Whether the policy was computing at that time; its chunk must have come since `restart`."""
        with self.lock:
            inferences = zip(self.inferred_at_s, self.inference_s, strict=False)
            return any(end_s - taken_s <= event_s <= end_s for end_s, taken_s in inferences)

    def _on_command(self, message: SafeCommand, info: Any) -> None:
        now_s = self._client.received_s(info)
        with self.lock:
            stream = self.stream
            stream.received_s.append(now_s)
            stream.at_ns.append(stamp_ns(message.stamp))
            stream.q_rad.append(doubles(message.position))
            stream.qd_rad_s.append(doubles(message.velocity))
            stream.gripper_m.append(message.gripper_width)
            stream.mode.append(message.mode)
            stream.sequence.append(message.sequence)
            stream.writer_id.append(message.writer_id)

    def _on_event(self, message: SafetyEvent) -> None:
        if message.rule == Reason.TRACKING.value:
            with self.lock:
                self.stream.anew_ns.append(stamp_ns(message.stamp))

    def _on_chunk(self, message: ActionChunk) -> None:
        now_s = time.monotonic()
        with self.lock:
            self.inference_s.append(message.inference_time)
            self.inferred_at_s.append(now_s)


def stream_violations(stream: Stream, contract: Contract) -> list[str]:
    """Check a recorded live stream: finite, position, velocity, acceleration, jerk, and standstill in STOP.

    Live ticks are not equidistant. Differences are taken of the commanded velocities, over the step that the limiter
    integrated (measured, at most two periods); the tolerance grows where the rounding of stamps weighs (short steps).
    A stop that ended while no command went out took the time that passed: the arm controller braked meanwhile.
    Runs of missing samples are left out: two commands that are not neighbours say nothing about one tick.
    """
    return [found for part in stream.parts() for found in (*_limits(part, contract), *_still(part))]


def _limits(stream: Stream, contract: Contract) -> list[str]:
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
    ended = (step > contract.timeouts.safe_command_s) & v[:-1].any(axis=1) & ~v[1:].any(axis=1)
    ended &= np.array(stream.mode[1:]) != SafeCommand.MODE_MOVE
    dt = np.where(ended, step, np.minimum(step, 2.0 * contract.period_s))[:, None]
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
        over = (excess - slack).max(axis=1)
        worst = int(over.argmax())
        if over[worst] > 0.0:
            last = worst + len(stream.at_ns) - len(over)  # a difference ends at the last of the commands it is made of
            found.append(f"{name} {over[worst]:.3g} above its limit ({_before(stream, last)})")
    return found


def _before(stream: Stream, last: int) -> str:
    """The commands up to `last`, for whoever has to find the cause."""
    rows = range(max(0, last - 3), last + 1)
    steps = ", ".join(f"{1e-6 * (stream.at_ns[k] - stream.at_ns[k - 1]):.1f}" for k in rows if k)
    speeds = ", ".join(f"{np.abs(stream.qd_rad_s[k]).max():.3f}" for k in rows)
    modes = ", ".join(str(stream.mode[k]) for k in rows)
    return f"command {stream.sequence[last]}, modes {modes}, steps {steps} ms, fastest joint {speeds} rad/s"


def _still(stream: Stream) -> list[str]:
    """Invariant 6: in STOP the command is constant after the ramp, and the grip stays as it is."""
    found = []
    for k in range(1, len(stream.mode)):
        if not (stream.mode[k] == stream.mode[k - 1] == SafeCommand.MODE_STOP):
            continue
        if stream.gripper_m[k] != stream.gripper_m[k - 1]:
            found.append("the grip changed in STOP")
        stood = not stream.qd_rad_s[k - 1].any() and not stream.qd_rad_s[k].any()
        if stood and not np.array_equal(stream.q_rad[k], stream.q_rad[k - 1]):
            found.append("the command moved in STOP after its ramp")
        if stream.qd_rad_s[k].any() and not stream.qd_rad_s[k - 1].any():
            found.append("the command started to move in STOP")
    return list(dict.fromkeys(found))


def percentiles(values: Sequence[float], *, unit: float = 1e3) -> dict[str, float]:
    """p50, p99 and max, in milliseconds for seconds."""
    if not values:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    array = np.asarray(values, dtype=np.float64) * unit
    p50, p99 = np.percentile(array, (50.0, 99.0))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(array.max()), 2)}


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
