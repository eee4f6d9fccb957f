"""The supervisor's view of the arm controller: is it there, and has it stopped by itself (rule 7)?"""

from __future__ import annotations

import math

from vla_ros.core.decision import EventLog
from vla_ros.core.errors import Invalid
from vla_ros.core.rules import FaultMonitor, Findings, Reason
from vla_ros.core.types import ArmStatus

ARM_LOST_S = 0.5  # choice: five reports of the arm controller
ARM_ANSWERS_S = 0.3  # choice: within this time after a rearm it must have let go


class ArmWatch:
    def __init__(self, monitor: FaultMonitor, events: EventLog) -> None:
        self._monitor = monitor
        self._events = events
        self._status: ArmStatus | None = None
        self._rearmed_at_s = -math.inf
        self.rearm_counter = 0

    def rearmed(self, now_s: float) -> None:
        self.rearm_counter += 1
        self._rearmed_at_s = now_s

    def take(self, now_s: float, status: ArmStatus | None, bad: Findings) -> None:
        """A latched stop of the arm controller latches the supervisor too."""
        self._status = status
        silent = status is not None and not now_s - status.reported_at_s <= ARM_LOST_S
        bad[Reason.ARM_LOST] = silent and not self._monitor.is_active(Reason.START_UP)
        if status is None or silent or not status.latched or self._monitor.latched:
            return
        after_rearm = status.reported_at_s > self._rearmed_at_s
        took_it = status.rearm_counter >= self.rearm_counter
        if after_rearm and (took_it or now_s - self._rearmed_at_s > ARM_ANSWERS_S):
            bad[Reason.ARM_LATCHED] = True
            self._events.note(Invalid("arm controller", status.reason, "not latched", reason=Reason.ARM_LATCHED.value))

    def rearm_refusal(self, now_s: float) -> str | None:
        if self._status is not None and not now_s - self._status.reported_at_s <= ARM_LOST_S:
            return "the arm controller does not report"
        if self._status is not None and not self._status.ready:
            return "the arm controller has no fresh joint state"
        return None
