"""What an operator may ask for: interrupt, instruction, cancel, home, and the heartbeat that says somebody is there."""

from __future__ import annotations

import math

from vla_ros.core.contract import Contract
from vla_ros.core.decision import Inputs, SpeedMode
from vla_ros.core.instructions import Reply
from vla_ros.core.rules import FaultMonitor, Findings, Reason
from vla_ros.core.task import Task
from vla_ros.core.types import Severity, Source

SHOW_AGAIN_S = 1.0  # how often the open instruction is repeated to a policy that does not know it
HEARTBEAT_NONE, HEARTBEAT_ALIVE, HEARTBEAT_LOST = 0, 1, 2  # msg/SafetyState


class Operator:
    def __init__(self, contract: Contract, monitor: FaultMonitor, task: Task) -> None:
        self._contract = contract
        self._monitor = monitor
        self._task = task
        self._heartbeat_at_s = -math.inf
        self._speed_mode: SpeedMode | None = None
        self._shown_s = -math.inf
        self.replies: list[Reply] = []

    def heartbeat(self, now_s: float) -> int:
        if not self._contract.operator_heartbeat_required:
            return HEARTBEAT_NONE
        alive = now_s - self._heartbeat_at_s <= self._contract.timeouts.operator_heartbeat_s
        return HEARTBEAT_ALIVE if alive else HEARTBEAT_LOST

    def take(self, now_s: float, inputs: Inputs, bad: Findings, source: Source) -> None:
        """`source`: who proposes motion. What a person does is not for the policy to refuse."""
        if inputs.heartbeat_at_s is not None:
            self._heartbeat_at_s = max(self._heartbeat_at_s, inputs.heartbeat_at_s)
        armed_or_stopped_by_it = not self._monitor.is_active(Reason.START_UP)
        bad[Reason.OPERATOR_HEARTBEAT] = armed_or_stopped_by_it and self.heartbeat(now_s) == HEARTBEAT_LOST
        if inputs.speed_mode is not None:
            self._speed_mode = inputs.speed_mode
        bad[Reason.REDUCED_SPEED] = self._reduced(now_s)
        task, book = self._task, self._task.book
        if inputs.interrupts > 0:
            bad[Reason.INTERRUPT] = True
            task.close(now_s, "interrupted")
        for instruction_id in inputs.closes:
            if instruction_id and instruction_id == book.open_id:
                task.close(now_s)
        stopped = self._monitor.latched or inputs.interrupts > 0
        for token, text, mode in inputs.instructs:
            if stopped:
                reason = self._monitor.reason.value or Reason.INTERRUPT.value
                self.replies.append(Reply(token, False, 0, f"the arm is stopped ({reason}): rearm first"))
            elif book.request(now_s, token, text, mode, by_hand=source is Source.TELEOPERATION):
                task.opened(now_s)
                self._monitor.acknowledge()
        for instruction_id, accepted, reason in inputs.verdicts:
            if book.verdict(instruction_id, accepted, reason):
                task.opened(now_s)
                if task.is_open:
                    self._monitor.acknowledge()
        book.tick(now_s)
        self._show_again(now_s, inputs.policy_instruction_id)
        for token in inputs.home:
            self._home(now_s, token, stopped)

    def _reduced(self, now_s: float) -> bool:
        """C7: slow unless somebody has just said that full speed is allowed, where anybody ever says so."""
        mode = self._speed_mode
        if mode is None:
            return self._contract.operator_heartbeat_required
        return mode.reduced or not now_s - mode.at_s <= self._contract.timeouts.operator_heartbeat_s

    def _home(self, now_s: float, token: object, stopped: bool) -> None:
        if stopped:
            self.replies.append(Reply(token, False, 0, "the arm is stopped: rearm first"))
            return
        if self._monitor.severity is Severity.HOLD and not self._task.first_chunk_missing:
            self.replies.append(Reply(token, False, 0, f"the arm holds ({self._monitor.reason.value})"))
            return
        self._task.close(now_s)
        self._task.home_asked = True
        self.replies.append(Reply(token, True))

    def _show_again(self, now_s: float, policy_instruction_id: int | None) -> None:
        if policy_instruction_id is None:
            return
        book = self._task.book
        book.seen(policy_instruction_id)
        if policy_instruction_id != book.open_id and now_s - self._shown_s >= SHOW_AGAIN_S:
            self._shown_s = now_s
            book.show_again()
