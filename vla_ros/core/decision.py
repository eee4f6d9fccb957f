"""What goes into the supervisor in one update, and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import Invalid
from vla_ros.core.instructions import Reply
from vla_ros.core.rules import RULES, Reason
from vla_ros.core.types import ArmStatus, Chunk, Command, JointSample, PerceptionStatus, Severity, Source


@dataclass(frozen=True, slots=True)
class SpeedMode:
    """Full speed is a permission that somebody keeps giving (C7): a mode switch, a presence sensor, an operator."""

    reduced: bool
    at_s: float  # steady time of receipt


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is new since the last update. Empty tuples and zero counts when nothing is."""

    joints: JointSample | None = None  # newest valid sample; the same one may be given again
    chunks: tuple[Chunk, ...] = ()
    interrupts: int = 0
    rearms: tuple[object, ...] = ()  # tokens
    instructs: tuple[tuple[object, str | bytes, int], ...] = ()  # (token, text, mode of srv/Instruct)
    verdicts: tuple[tuple[int, bool, str], ...] = ()  # (instruction id, accepted, reason)
    closes: tuple[int, ...] = ()  # instruction ids to cancel
    home: tuple[object, ...] = ()  # tokens
    retreats: tuple[object, ...] = ()  # tokens: go back along the executed path
    policy_instruction_id: int | None = None  # of the newest PolicyStatus; None: nothing new
    heartbeat_at_s: float | None = None  # steady time of the newest operator heartbeat
    # Newest message of the speed mode; the same one may be given again. Once given, its silence means reduced; before,
    # absence means reduced where the contract requires an operator's heartbeat.
    speed_mode: SpeedMode | None = None
    # Newest report of the arm controller. A shell with an arm controller in another process gives one in every update,
    # also before the first (not ready, infinitely old); None means that the caller runs the controller itself.
    arm: ArmStatus | None = None
    # Newest report of perception, by the same rule: None means that the caller has no perception to watch.
    perception: PerceptionStatus | None = None
    sources: tuple[tuple[object, Source], ...] = ()  # (token, who may propose motion from now on)
    clock_runs: bool = True  # of stamps: False while simulated time stands still or has just stepped back (E9)


@dataclass(frozen=True, slots=True)
class SafetyEventData:
    """Fields of msg/SafetyEvent."""

    rule: str
    limit: float
    value: float
    index: int
    chunk_sequence: int
    text: str


ACTS = {
    Severity.LIMIT: "the arm slows down",
    Severity.HOLD: "the arm holds",
    Severity.STOP: "the arm stops, and waits for a rearm",
    Severity.DISARM: "the arm is disarmed",
}


class EventLog:
    """What set in and what was refused in one update, until it is published."""

    def __init__(self) -> None:
        self._events: list[SafetyEventData] = []

    def note(self, error: Invalid, chunk_sequence: int = 0) -> None:
        value = error.value
        number = float(value) if isinstance(value, (int, float, np.floating)) else math.nan
        self._events.append(SafetyEventData(error.reason, math.nan, number, -1, chunk_sequence, str(error)[:256]))

    def raised(self, reason: Reason) -> None:
        """A condition of `RULES` has set in; whoever found it may have told more."""
        if not any(event.rule == reason.value for event in self._events):
            act = ACTS[RULES[reason].severity]
            self._events.append(SafetyEventData(reason.value, math.nan, math.nan, -1, 0, act))

    def take(self) -> tuple[SafetyEventData, ...]:
        events, self._events = tuple(self._events), []
        return events


@dataclass(frozen=True, slots=True)
class Counters:
    ticks: int = 0
    late_ticks: int = 0  # more than one period late
    chunks_accepted: int = 0
    chunks_rejected: int = 0
    chunks_cut: int = 0  # accepted, and ended before a later row that cannot be reached


@dataclass(frozen=True, slots=True)
class Decision:
    command: Command | None  # None until the first joint sample, and while the arm is outside its soft limits
    severity: Severity
    reason: Reason
    latched: bool
    scale: float
    phase: str  # idle, waiting, moving, holding, done, stopped
    instruction_id: int
    text: str
    publish_instruction: tuple[int, str] | None
    replies: tuple[Reply, ...]
    events: tuple[SafetyEventData, ...]
    done_probability: float
    tool_speed_m_s: float
    speed_cap_m_s: float  # of tool and elbow; lower in reduced mode
    counters: Counters
    heartbeat: int  # msg/SafetyState: 0 none asked for, 1 alive, 2 lost
    done_id: int  # newest instruction that was judged done, 0 before the first
    source: Source  # who may propose motion
    contact_monitored: bool  # False while the joint states carry no effort: C6 cannot be seen

    def raised(self, reason: Reason) -> bool:
        """It has set in with this update, whether or not it is the one that `reason` names."""
        return any(event.rule == reason.value for event in self.events)
