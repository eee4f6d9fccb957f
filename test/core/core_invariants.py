"""The eight invariants of the safety specification (section 6), tick by tick. Every loop of the tests has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.collision import HOLD_M, SelfCollision
from vla_ros.core.contract import Contract
from vla_ros.core.decision import Decision
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.lookahead import SINGULAR_HOLD, WORKSPACE_TOLERANCE_M
from vla_ros.core.rules import HEALTHY_AFTER_S, Reason
from vla_ros.core.types import Chunk, CommandMode, Severity

RAMP_S = 0.45  # longest stop, plus a tick
# What the arm's pose may pass a bound by: the look-ahead's own tolerance, and the stop that it begins one tick later.
NEARER_M, WORSE_CONDITION, OUTSIDE_M = 0.005, 3.0, WORKSPACE_TOLERANCE_M + 0.007


class Violation(AssertionError):
    """An invariant does not hold. `number` is its place in the specification's list."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"invariant {number}: {what}")
        self.number = number


def require(holds: object, number: int, what: str, *values: object) -> None:
    """`what` is formatted with the values only when it must be told: arrays take longer to print than to check."""
    if not holds:
        raise Violation(number, what.format(*values))


@dataclass(frozen=True)
class _Last:
    t_s: float
    q: np.ndarray
    v: np.ndarray
    rearms: int


class CommandStream:
    """Invariants 1 to 4: each command by itself, and by differences what lies between two of them."""

    def __init__(self, contract: Contract) -> None:
        self._limits, self._longest_s = contract.limits, 2.0 * contract.period_s
        self._silent_s = contract.timeouts.safe_command_s  # without commands for longer the arm controller has latched
        self._anchored_rad = contract.tolerances.rearm_start_rad
        self._last: _Last | None = None
        self._a: np.ndarray | None = None  # None: a stream that has just begun has none
        self._dt_s = 0.0
        self.tracking = False  # a stop from the measured state is going on, or has been and is still latched
        self._anchors = False

    def take(self, t_s: float, decision: Decision) -> None:
        """`t_s`: on the clock that the supervisor was given."""
        # A stop after a tracking fault begins anew, from the measured state.
        raised = decision.raised(Reason.TRACKING)
        self._anchors |= raised
        self.tracking = (self.tracking or raised) and decision.latched
        if decision.command is None:
            return
        q, v, limits = decision.command.q_rad, decision.command.qd_rad_s, self._limits
        require(np.isfinite(q).all() and np.isfinite(v).all(), 1, "command {} {}", q, v)
        require((q >= limits.q_lo_rad - 1e-9).all() and (q <= limits.q_hi_rad + 1e-9).all(), 2, "q {}", q)
        require((np.abs(v) <= limits.v_max_rad_s + 1e-9).all(), 3, "v {}", v)
        last, now = self._last, _Last(t_s, q, v, decision.command.rearm_counter)
        if last is None:
            self._last = now
            return
        if not t_s > last.t_s:  # a clock that stands or runs backwards
            require((q == last.q).all() and (v == last.v).all(), 4, "the command moves while time does not")
            return
        # Late ticks are integrated as two periods, so differences are taken over the time that was integrated. A stop
        # that came to its end while no command went out took the time that passed: the arm controller braked meanwhile.
        dt_s = t_s - last.t_s
        ended = dt_s > self._silent_s and last.v.any() and not v.any() and decision.command.mode is not CommandMode.MOVE
        dt_s = dt_s if ended else min(dt_s, self._longest_s)
        if self._anchors:
            self._a, self._anchors = None, False
        elif now.rearms != last.rearms and np.abs(q - last.q).max() > self._anchored_rad:
            require(not last.v.any(), 4, "anchored anew in motion: {}", last.v)  # moved by hand while it stood
            self._a = None
        else:
            self._differences(last, now, dt_s)
        self._last, self._dt_s = now, dt_s

    def _differences(self, last: _Last, now: _Last, dt_s: float) -> None:
        limits = self._limits
        v = (now.q - last.q) / dt_s
        require((np.abs(v) <= limits.v_max_rad_s + 1e-9).all(), 3, "step of q: {} rad/s", v)
        a = (now.v - last.v) / dt_s
        require((np.abs(a) <= limits.a_max_rad_s2 + 1e-6).all(), 4, "a {}", a)
        if self._a is not None:
            j = (a - self._a) / (0.5 * (dt_s + self._dt_s))
            require((np.abs(j) <= limits.j_max_rad_s3 * (1.0 + 1e-6)).all(), 4, "jerk {}", j)
        self._a = a


class Invariants:
    """All eight, over one story. `look_every`: the pose itself (box, distance, singularity) every so many ticks."""

    def __init__(self, contract: Contract, kinematics: Kinematics, look_every: int = 0) -> None:
        self._contract, self._kinematics, self._look_every = contract, kinematics, look_every
        self._stream = CommandStream(contract)
        self._collision = SelfCollision(contract, kinematics) if look_every else None
        self._before: Decision | None = None
        self._taken: list[tuple[Chunk, int]] = []  # chunks accepted in this tick, and the open instruction
        self._t_s = self._forbidden_s = self._held_s = self._stopped_s = self._capped_s = -np.inf
        self.ticks = self.chunks = 0

    def watch(self, executor: ChunkExecutor) -> None:
        """Hear of each chunk that the executor takes over."""
        accept = executor.accept

        def spy(now_s: float, chunk: Chunk, instruction_id: int, *rest) -> None:
            accept(now_s, chunk, instruction_id, *rest)
            self._taken.append((chunk, instruction_id))

        executor.accept = spy  # type: ignore[method-assign]

    def take(self, t_s: float, decision: Decision, *, interrupts: int = 0, rearms: bool = False) -> None:
        """Once a tick, after the update. Raises `Violation`. `t_s`: on the clock that the supervisor was given."""
        before, taken = self._before, self._taken
        self._before, self._taken = decision, []
        self._stream.take(t_s, decision)
        before_s = self._t_s
        self._t_s = t_s = max(before_s, t_s)
        self.ticks += 1
        self.chunks += len(taken)
        numbers = (decision.scale, decision.tool_speed_m_s, decision.speed_cap_m_s)
        require(np.isfinite(numbers).all() and 0.0 < decision.scale <= 1.0, 1, "published {}", numbers)
        for chunk, open_id in taken:
            require(chunk.instruction_id == open_id, 8, f"chunk of {chunk.instruction_id}, open is {open_id}")
            if decision.severity < Severity.HOLD:  # taken over in a hold it is not executed: the next one is
                age_s = t_s - chunk.observed_at_s
                require(chunk.observed_at_s > self._forbidden_s, 8, f"{age_s:.3f} s old, older than what forbade it")
        if before is None or decision.command is None or before.command is None:
            self._note(t_s, before, decision, interrupts)
            return
        if before.severity >= Severity.STOP > decision.severity:
            answered = rearms and any(reply.accepted for reply in decision.replies)
            require(answered, 5, f"{before.reason.value} ended without a rearm")
        elif before.severity is Severity.HOLD > decision.severity and before.reason is not Reason.INSTRUCTION_CHANGED:
            require(t_s - self._held_s >= HEALTHY_AFTER_S - 1e-9, 5, f"{before.reason.value} held too short")
            require(taken or not decision.instruction_id, 5, f"{before.reason.value} ended without a new chunk")
        self._note(t_s, before, decision, interrupts)
        q, v = decision.command.q_rad, decision.command.qd_rad_s
        same_rearm = decision.command.rearm_counter == before.command.rearm_counter
        if min(decision.severity, before.severity) >= Severity.STOP and same_rearm:
            over_s = self._stopped_s + 2.0 * RAMP_S
            require(not (t_s > over_s and v.any()), 6, "moves after the ramp")
            if before_s > over_s:
                require((q == before.command.q_rad).all(), 6, "goes elsewhere after the ramp")
                kept = decision.command.gripper_width_m == before.command.gripper_width_m
                require(kept, 6, "the gripper moves after the ramp")
        if not self._stream.tracking:
            ramping = t_s - self._capped_s <= 2.0 * RAMP_S
            cap = self._contract.speed.tool_m_s if ramping else decision.speed_cap_m_s
            fastest = float(self._kinematics.speeds(q, v).max())
            require(fastest <= cap + 1e-6, 7, f"{fastest:.4f} m/s, cap {cap}")
        if self._look_every and self.ticks % self._look_every == 0:
            self._look(q)

    def _note(self, t_s: float, before: Decision | None, decision: Decision, interrupts: int) -> None:
        """What the next ticks are judged by."""
        if interrupts or before is None or decision.instruction_id != before.instruction_id:
            self._forbidden_s = t_s
        was = Severity.RUN if before is None else before.severity
        if decision.severity >= Severity.HOLD > was and decision.reason is not Reason.INSTRUCTION_CHANGED:
            self._forbidden_s = t_s
        if decision.severity is Severity.HOLD and was is not Severity.HOLD:
            self._held_s = t_s
        if decision.severity >= Severity.STOP > was:
            self._stopped_s = t_s
        if before is not None and decision.speed_cap_m_s < before.speed_cap_m_s:
            self._capped_s = t_s

    def _look(self, q: np.ndarray) -> None:
        """Not numbered in the specification: what C2, C3 and C4 promise of every command."""
        assert self._collision is not None
        box, tool = self._contract.workspace, self._kinematics.points(q)[0]
        outside = float(np.maximum(box.lower_m - tool, tool - box.upper_m).max())
        require(outside <= OUTSIDE_M, 7, f"the tool is {outside:.4f} m outside its box")
        distance, condition = self._collision.distance(q), self._kinematics.condition(q)
        require(distance >= HOLD_M - NEARER_M, 7, f"the arm is {distance:.4f} m from itself")
        require(condition <= SINGULAR_HOLD + WORSE_CONDITION, 7, f"condition number {condition:.1f}")
