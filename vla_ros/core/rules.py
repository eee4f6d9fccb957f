"""Conditions of the supervisor as data: severity and clear rule of each reason, and the monitor that applies them.

Ids in brackets are rows of the fault table in the safety specification. Adding a row means adding one line to RULES
and one report in the supervisor.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from vla_ros.core.types import Severity

HEALTHY_AFTER_S = 0.5  # fault to healthy: no bad sample for this long
FLAP_COUNT, FLAP_WINDOW_S = 3, 10.0  # three holds with one reason within 10 s become a stop


class Reason(str, enum.Enum):  # the value is the reason id of msg/SafetyState
    NONE = ""
    START_UP = "start_up"
    INTERRUPT = "interrupt"  # D1, D2, D3, D5
    OPERATOR_HEARTBEAT = "operator_heartbeat"  # D4
    STATE_STALE = "state_stale"  # A7, A8: no valid joint state for 50 ms
    STATE_LOST = "state_lost"  # A7: for 500 ms
    BAD_CHUNKS = "bad_chunks"  # B1: three chunks with NaN or Inf within 10 s
    CONTRACT_MISMATCH = "contract_mismatch"  # B3
    FLAPPING = "flapping"
    CHUNK_STALE = "chunk_stale"  # B5, B6, B7: older than 500 ms, or run out
    INSTRUCTION_CHANGED = "instruction_changed"  # D7: waits for the first chunk of the open instruction
    WORKSPACE = "workspace"  # C2
    ARM_LATCHED = "arm_latched"  # rule 7: the arm controller stopped by itself, or did not take the rearm
    ARM_LOST = "arm_lost"  # E3: no report of the arm controller for 500 ms
    TRACKING = "tracking"  # C5: the arm is not where it was told to be
    CLOCK = "clock"  # E9: dt <= 0
    LATE_TICK = "late_tick"  # E10: more than 100 ms
    SPEED_LIMIT = "speed_limit"  # tool or joint speed of the chunk is above the contract's
    TRACKING_LAG = "tracking_lag"  # the limits do not let the command keep up with the chunk
    CHUNK_ENDING = "chunk_ending"  # B5: the chunk runs out, and no newer one has come
    INTERNAL = "internal"  # E14: the executor or the limiter raised
    SELF_COLLISION = "self_collision"  # C3: the arm would come to rest less than 15 mm from itself
    SELF_COLLISION_NEAR = "self_collision_near"  # C3: less than 50 mm
    SINGULARITY = "singularity"  # C4: condition number of 30 at the stop pose
    SINGULARITY_NEAR = "singularity_near"  # C4: of 17
    REDUCED_SPEED = "reduced_speed"  # C7: asked, or nobody says that full speed is allowed
    IMAGE_STALE = "image_stale"  # A1: a camera, or perception itself, is silent for 200 ms
    IMAGE_FROZEN = "image_frozen"  # A2
    IMAGE_BLIND = "image_blind"  # A5
    STATE_JUMP = "state_jump"  # A9
    SHAKING = "shaking"  # B9
    NO_PROGRESS = "no_progress"  # B9
    CONTACT = "contact"  # C6
    GRIPPER_STUCK = "gripper_stuck"  # C8
    OBJECT_DROPPED = "object_dropped"  # C9


Findings = dict[Reason, bool]  # of one update: True is bad; a condition without an entry was not checked


class Clear(enum.Enum):
    SELF = "self"  # healthy for 0.5 s
    AUTO = "auto"  # healthy for 0.5 s and, with an open instruction, a chunk observed after the fault
    NEW_CHUNK = "new_chunk"  # a chunk of the open instruction; no wait
    OPERATOR = "operator"  # as AUTO, once the operator has acted: a rearm, or another instruction
    INSTRUCTION = "instruction"  # as AUTO, once there is another instruction; a rearm does while none is open
    REARM = "rearm"


@dataclass(frozen=True, slots=True)
class Rule:
    severity: Severity
    clear: Clear
    flaps: bool = False  # counts for the flap guard
    event: bool = False  # happens or not; every other condition must be checked in every tick
    retreat: bool = False  # ends when the arm stands and the instruction is closed: an operator may have it go back


RULES: dict[Reason, Rule] = {
    Reason.START_UP: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.INTERRUPT: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.OPERATOR_HEARTBEAT: Rule(Severity.STOP, Clear.REARM),
    Reason.STATE_STALE: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.STATE_LOST: Rule(Severity.STOP, Clear.REARM),
    Reason.BAD_CHUNKS: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.CONTRACT_MISMATCH: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.FLAPPING: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.CHUNK_STALE: Rule(Severity.HOLD, Clear.AUTO, flaps=True, retreat=True),
    Reason.INSTRUCTION_CHANGED: Rule(Severity.HOLD, Clear.NEW_CHUNK, retreat=True),
    Reason.WORKSPACE: Rule(Severity.HOLD, Clear.AUTO, flaps=True, retreat=True),
    Reason.SELF_COLLISION: Rule(Severity.HOLD, Clear.AUTO, flaps=True, retreat=True),
    Reason.SELF_COLLISION_NEAR: Rule(Severity.LIMIT, Clear.SELF),
    Reason.SINGULARITY: Rule(Severity.HOLD, Clear.AUTO, flaps=True, retreat=True),
    Reason.SINGULARITY_NEAR: Rule(Severity.LIMIT, Clear.SELF),
    Reason.REDUCED_SPEED: Rule(Severity.LIMIT, Clear.SELF),
    Reason.ARM_LATCHED: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.ARM_LOST: Rule(Severity.STOP, Clear.REARM),
    Reason.TRACKING: Rule(Severity.STOP, Clear.REARM),
    Reason.CLOCK: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.LATE_TICK: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.SPEED_LIMIT: Rule(Severity.LIMIT, Clear.SELF),
    Reason.TRACKING_LAG: Rule(Severity.LIMIT, Clear.SELF),
    Reason.CHUNK_ENDING: Rule(Severity.LIMIT, Clear.SELF),
    Reason.INTERNAL: Rule(Severity.HOLD, Clear.AUTO, flaps=True, event=True),
    Reason.IMAGE_STALE: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.IMAGE_FROZEN: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.IMAGE_BLIND: Rule(Severity.HOLD, Clear.AUTO, flaps=True),
    Reason.STATE_JUMP: Rule(Severity.STOP, Clear.REARM, event=True),
    Reason.SHAKING: Rule(Severity.LIMIT, Clear.SELF),
    Reason.NO_PROGRESS: Rule(Severity.HOLD, Clear.OPERATOR),
    Reason.CONTACT: Rule(Severity.STOP, Clear.REARM),
    Reason.GRIPPER_STUCK: Rule(Severity.HOLD, Clear.OPERATOR, event=True),
    Reason.OBJECT_DROPPED: Rule(Severity.HOLD, Clear.INSTRUCTION, event=True),
}


def is_veto(rule: str) -> bool:
    """Whether a SafetyEvent of this rule says that something was not executed: a chunk or message was rejected, or the
    arm held or stopped. Not what only slows it, nor the wait for the first chunk of an instruction."""
    if rule not in {reason.value for reason in RULES}:
        return True
    return RULES[Reason(rule)].severity >= Severity.HOLD and rule != Reason.INSTRUCTION_CHANGED.value


@dataclass(slots=True)
class _Condition:
    active: bool = False
    bad: bool = False  # in this tick
    acknowledged: bool = False  # the operator has acted since the onset
    last_bad_s: float = -1e9
    onset_s: float = -1e9
    count: int = 0
    onsets_s: deque[float] = field(default_factory=lambda: deque(maxlen=FLAP_COUNT))


class FaultMonitor:
    """Which conditions are active, which severity wins, and when each clears. One thread."""

    def __init__(self) -> None:
        self._conditions = {reason: _Condition() for reason in RULES}
        self.severity = Severity.STOP
        self.reason = Reason.START_UP
        self.raised: list[Reason] = []  # what set in with the last tick
        start = self._conditions[Reason.START_UP]
        start.active, start.count = True, 1

    @property
    def counts(self) -> dict[Reason, int]:
        return {reason: condition.count for reason, condition in self._conditions.items()}

    @property
    def latched(self) -> bool:
        return self.severity >= Severity.STOP

    def tick(self, now_s: float, bad: Findings, chunk_accepted: bool, instruction_open: bool) -> None:
        """Apply this tick's findings. A rule without a finding was not checked, and unchecked is bad."""
        self.raised = []
        for reason, condition in self._conditions.items():
            condition.bad = bad.get(reason, not RULES[reason].event)
            if condition.bad:
                condition.last_bad_s = now_s
                if not condition.active:
                    self._raise(now_s, reason)
        self._clear(now_s, chunk_accepted, instruction_open)
        self._select()

    def _raise(self, now_s: float, reason: Reason) -> None:
        condition = self._conditions[reason]
        self.raised.append(reason)
        condition.active, condition.onset_s, condition.acknowledged = True, now_s, False
        condition.count += 1
        condition.onsets_s.append(now_s)
        flapping = len(condition.onsets_s) == FLAP_COUNT and now_s - condition.onsets_s[0] <= FLAP_WINDOW_S
        if RULES[reason].flaps and flapping and not self._conditions[Reason.FLAPPING].active:
            condition.onsets_s.clear()
            self._raise(now_s, Reason.FLAPPING)

    def _clear(self, now_s: float, chunk_accepted: bool, instruction_open: bool) -> None:
        # All holds clear together: with one left the arm stays, and the chunk that came meanwhile grows old.
        waiting = [
            reason
            for reason, condition in self._conditions.items()
            if condition.active and RULES[reason].clear in (Clear.AUTO, Clear.OPERATOR, Clear.INSTRUCTION)
            if not (self._healthy(now_s, condition) and (condition.acknowledged or RULES[reason].clear is Clear.AUTO))
        ]
        resume = not waiting and (chunk_accepted or not instruction_open)
        for reason, condition in self._conditions.items():
            rule = RULES[reason].clear
            if not condition.active or condition.bad:
                continue
            clears = {
                Clear.SELF: self._healthy(now_s, condition),
                Clear.AUTO: resume,
                Clear.OPERATOR: resume,
                Clear.INSTRUCTION: resume,
                Clear.NEW_CHUNK: True,
                Clear.REARM: False,
            }
            condition.active = not clears[rule]

    @staticmethod
    def _healthy(now_s: float, condition: _Condition) -> bool:
        return not condition.bad and now_s - condition.last_bad_s >= HEALTHY_AFTER_S

    def _select(self) -> None:
        active = [reason for reason, condition in self._conditions.items() if condition.active]
        severity = max((RULES[reason].severity for reason in active), default=Severity.RUN)
        if severity != self.severity or not (self.reason in RULES and self._conditions[self.reason].active):
            # The first reason of this severity is published and stays while it is active.
            candidates = [reason for reason in active if RULES[reason].severity == severity]
            self.reason = min(candidates, key=lambda r: self._conditions[r].onset_s, default=Reason.NONE)
        self.severity = severity

    def is_active(self, reason: Reason) -> bool:
        return self._conditions[reason].active

    def forbids_retreat(self) -> Reason | None:
        """A condition that keeps the arm where it is, and that standing with a closed instruction does not end."""
        for reason, condition in self._conditions.items():
            if condition.active and RULES[reason].severity >= Severity.HOLD and not RULES[reason].retreat:
                return reason
        return None

    def blocks_rearm(self, now_s: float) -> Reason | None:
        """A condition that is bad now, or was within 0.5 s, and is not merely waiting for the rearm itself."""
        for reason, condition in self._conditions.items():
            matters = RULES[reason].severity >= Severity.HOLD and RULES[reason].clear is not Clear.NEW_CHUNK
            if matters and not self._healthy(now_s, condition):
                return reason
        return None

    def acknowledge(self) -> None:
        """Another instruction, or another source: answers whatever waits for the operator."""
        for condition in self._conditions.values():
            condition.acknowledged = True

    def rearm(self, instruction_open: bool = False) -> None:
        """The operator's act: every latch opens. The caller has checked the guard."""
        for reason, condition in self._conditions.items():
            if not (instruction_open and RULES[reason].clear is Clear.INSTRUCTION):
                condition.acknowledged = True
            condition.onsets_s.clear()
            if RULES[reason].clear is Clear.REARM:
                condition.active = False
        self._select()
