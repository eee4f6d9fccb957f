"""The `execute` action: one instruction from beginning to end, told from the supervisor's decisions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.action import ActionServer, CancelResponse

from vla_ros.action import Execute
from vla_ros.core.types import Severity
from vla_ros.srv import Instruct

if TYPE_CHECKING:
    from vla_ros.core.supervisor import Decision
    from vla_ros.nodes.desk import Desk
    from vla_ros.nodes.supervisor import SupervisorNode

TIMEOUT_DEFAULT_S = 60.0  # action/Execute
TIMEOUT_MIN_S, TIMEOUT_MAX_S = 1.0, 600.0


class OpenGoals:
    """Which instruction each open goal stands for, and which goals were cancelled: told before their thread looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instructions: dict[bytes, int] = {}
        self._cancelled: set[bytes] = set()

    def opened(self, goal_id: bytes, instruction_id: int) -> bool:
        """Whether it was cancelled before it had an instruction, which the caller closes then."""
        with self._lock:
            self._instructions[goal_id] = instruction_id
            return goal_id in self._cancelled

    def cancel(self, goal_id: bytes) -> int:
        """The instruction to close; 0 while it has no answer yet: see `opened`."""
        with self._lock:
            self._cancelled.add(goal_id)
            return self._instructions.get(goal_id, 0)

    def cancelled(self, goal_id: bytes) -> bool:
        with self._lock:
            return goal_id in self._cancelled

    def ended(self, goal_id: bytes) -> None:
        with self._lock:
            self._instructions.pop(goal_id, None)
            self._cancelled.discard(goal_id)


class GoalServer(ActionServer):
    """An action server of the node itself, so that a cancel comes the way an interrupt does: the desk's executor, which
    builds a wait set anew for each event, cost a cancel 4 ms (p99). Goals run at the desk, where they may block."""

    def __init__(
        self,
        node: SupervisorNode,
        kind: Any,
        name: str,
        desk: Desk,
        execute: Callable[[Any], Any],
        cancel: Callable[[Any], CancelResponse],
    ) -> None:
        self._desk = desk
        self._log = node.get_logger()
        super().__init__(node, kind, name, execute, cancel_callback=cancel)

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:
        self._desk.run(self._execute_goal, execute_callback or self._execute_callback, goal_handle)

    async def execute(self, taken_data: Any) -> None:
        """A request that failed (its client may be gone) is not the end of the node."""
        try:
            await super().execute(taken_data)
        except Exception as error:  # noqa: BLE001 the supervisor goes on without it
            self._log.error(f"a request of an action client was not answered: {error!r}")


def run_goal(node: SupervisorNode, goal: Any) -> Execute.Result:
    """Body of the action server. Blocks, in a thread of the desk."""
    goal_id = bytes(goal.goal_id.uuid)
    recorded = node.episodes.start(goal.request.text)
    result = Execute.Result(outcome=Execute.Result.OUTCOME_STOPPED, reason="a defect in the supervisor")
    try:
        result = _run(node, goal, goal_id)
    finally:
        node.goals.ended(goal_id)
        result.episode_uri = node.episodes.keep(recorded, result)
    return result


def _run(node: SupervisorNode, goal: Any, goal_id: bytes) -> Execute.Result:
    started_s = time.monotonic()
    timeout_s = float(goal.request.timeout) or TIMEOUT_DEFAULT_S
    if not TIMEOUT_MIN_S <= timeout_s <= TIMEOUT_MAX_S:
        allowed = f"{TIMEOUT_MIN_S:g} to {TIMEOUT_MAX_S:g} s, or 0 for {TIMEOUT_DEFAULT_S:g} s"
        return _end(
            goal, Execute.Result.OUTCOME_REFUSED, 0, f"timeout is {timeout_s:g} s, allowed: {allowed}", started_s
        )
    reply = node.instruct(goal.request.text, Instruct.Request.MODE_REPLACE)
    if not reply.accepted:
        return _end(goal, Execute.Result.OUTCOME_REFUSED, 0, reply.reason, started_s)
    if node.goals.opened(goal_id, reply.instruction_id):
        node.close_instruction(reply.instruction_id)
    while True:
        decision = node.next_state()
        if decision is None or not node.active:
            return _end(goal, Execute.Result.OUTCOME_STOPPED, reply.instruction_id, "the supervisor stopped", started_s)
        if goal.is_cancel_requested:  # and its instruction is closed: the node heard of it first
            return _end(goal, Execute.Result.OUTCOME_CANCELLED, reply.instruction_id, "cancelled", started_s)
        if time.monotonic() - started_s > timeout_s:
            node.close_instruction(reply.instruction_id)
            reason = f"not done within {timeout_s:g} s"
            return _end(goal, Execute.Result.OUTCOME_TIMEOUT, reply.instruction_id, reason, started_s)
        if node.goals.cancelled(goal_id):
            continue  # its instruction is closed already; the goal itself follows at once
        ended = _ended(decision, reply.instruction_id)
        if ended is not None:
            return _end(goal, ended[0], reply.instruction_id, ended[1], started_s)
        goal.publish_feedback(
            Execute.Feedback(phase=decision.phase, progress=decision.done_probability, severity=int(decision.severity))
        )


def _ended(decision: Decision, instruction_id: int) -> tuple[int, str] | None:
    """Outcome and reason once the instruction is no longer open, else None."""
    if decision.done_id == instruction_id:
        return Execute.Result.OUTCOME_DONE, "the policy says done and the arm has settled"
    if decision.severity >= Severity.STOP:
        return Execute.Result.OUTCOME_STOPPED, decision.reason.value
    if decision.instruction_id > instruction_id:
        return Execute.Result.OUTCOME_REPLACED, f"instruction {decision.instruction_id} took over"
    if decision.instruction_id != instruction_id:
        return Execute.Result.OUTCOME_STOPPED, "the instruction was closed"
    return None


def _end(goal: Any, outcome: int, instruction_id: int, reason: str, started_s: float) -> Execute.Result:
    if outcome == Execute.Result.OUTCOME_DONE:
        goal.succeed()
    elif outcome == Execute.Result.OUTCOME_CANCELLED:
        goal.canceled()
    else:
        goal.abort()
    return Execute.Result(
        outcome=outcome, instruction_id=instruction_id, reason=reason[:512], duration=time.monotonic() - started_s
    )
