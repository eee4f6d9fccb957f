"""The `execute` action: one instruction from beginning to end, told from the supervisor's decisions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vla_ros.action import Execute
from vla_ros.core.types import Severity
from vla_ros.srv import Instruct

if TYPE_CHECKING:
    from vla_ros.core.supervisor import Decision
    from vla_ros.nodes.supervisor import SupervisorNode

TIMEOUT_DEFAULT_S = 60.0  # action/Execute
TIMEOUT_MIN_S, TIMEOUT_MAX_S = 1.0, 600.0


def run_goal(node: SupervisorNode, goal: Any) -> Execute.Result:
    """Body of the action server. Blocks, in a thread of the desk."""
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
    while True:
        decision = node.next_state()
        if decision is None or not node.active:
            return _end(goal, Execute.Result.OUTCOME_STOPPED, reply.instruction_id, "the supervisor stopped", started_s)
        if goal.is_cancel_requested:
            node.close_instruction(reply.instruction_id)
            return _end(goal, Execute.Result.OUTCOME_CANCELLED, reply.instruction_id, "cancelled", started_s)
        if time.monotonic() - started_s > timeout_s:
            node.close_instruction(reply.instruction_id)
            reason = f"not done within {timeout_s:g} s"
            return _end(goal, Execute.Result.OUTCOME_TIMEOUT, reply.instruction_id, reason, started_s)
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
