"""The supervisor: one pure machine between a policy nobody trusts and an arm. `update(now, inputs) -> Decision`.

It reads no clock, logs nothing and knows no middleware. It may be called out of phase: the shell calls it at once
when an interrupt arrives and does not wait for the next tick. One thread at a time.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.contract import Contract
from vla_ros.core.decision import Counters, Decision, Inputs, SafetyEventData
from vla_ros.core.errors import Invalid
from vla_ros.core.instructions import InstructionBook, Reply
from vla_ros.core.joints import JointWatch
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import LOOK_AHEAD_S
from vla_ros.core.motion import Mode, Mover
from vla_ros.core.rules import FaultMonitor, Reason
from vla_ros.core.types import ArmStatus, Chunk, Command, CommandMode, Severity

__all__ = ["Counters", "Decision", "Inputs", "Reply", "SafetyEventData", "Supervisor"]

STATE_LOST_S = 0.5  # A7
ARM_LOST_S = 0.5  # choice: five reports of the arm controller
ARM_ANSWERS_S = 0.3  # choice: within this time after a rearm it must have let go
TRACKING_RAD, TRACKING_FOR_S = 0.1, 0.05  # C5; full speed and 30 ms of actuation delay make 0.03 rad
LATE_TICK_S = 0.1  # E10
BAD_CHUNK_COUNT, BAD_CHUNK_WINDOW_S = 3, 10.0  # B1
DONE_ABOVE, DONE_FOR_S = 0.9, 0.5
SETTLED_FOR_S = 0.2  # choice: so long must arm and gripper have been still
SHOW_AGAIN_S = 1.0  # how often the open instruction is repeated to a policy that does not know it
MAX_CHUNKS = 2  # looked at in one update, newest last: a flood must not cost the tick (E11)


class Supervisor:
    def __init__(self, contract: Contract, kinematics: Kinematics, writer_id: int) -> None:
        if not writer_id >= 1:
            raise Invalid("writer_id", writer_id, ">= 1")
        self._contract = contract
        self._kinematics = kinematics
        self._writer_id = writer_id
        self._monitor = FaultMonitor()
        self._book = InstructionBook()
        self._executor = ChunkExecutor(contract, kinematics)
        self._mover: Mover | None = None
        self._joints = JointWatch(contract)
        self._now_s = -math.inf
        self._sequence = self._rearm_counter = 0
        self._gripper_width_m = 0.0
        self._bad_chunks_s: deque[float] = deque(maxlen=BAD_CHUNK_COUNT)
        self._first_chunk_missing = False  # the open instruction has not had a chunk yet
        self._home_asked = False
        self._done_probability = 0.0
        self._done_since_s = math.inf  # since when the policy has said done without a break
        self._finishing = self._done = False
        self._done_id = 0
        self._tracked_s = -math.inf  # when the arm was last seen where it was told to be
        self._shown_s = -math.inf
        self._heartbeat_at_s = -math.inf
        self._arm: ArmStatus | None = None
        self._rearmed_at_s = -math.inf
        self._ticks = self._late_ticks = self._accepted = self._rejected = 0
        self._events: list[SafetyEventData] = []
        self._replies: list[Reply] = []
        self._bad: dict[Reason, bool] = {}

    def update(self, now_s: float, inputs: Inputs) -> Decision:
        dt_s = now_s - self._now_s if math.isfinite(self._now_s) else self._contract.period_s
        self._bad = {}
        self._ticks += 1
        self._bad[Reason.CLOCK] = not dt_s > 0.0
        self._bad[Reason.LATE_TICK] = dt_s > LATE_TICK_S
        if dt_s > 2.0 * self._contract.period_s:
            self._late_ticks += 1
        self._now_s = max(self._now_s, now_s)

        self._take_joints(now_s, inputs)
        self._take_operator(now_s, inputs)
        chunk_accepted = self._take_chunks(now_s, inputs.chunks)
        self._take_arm(now_s, inputs.arm)
        self._check(now_s)
        self._monitor.tick(now_s, self._bad, chunk_accepted, self._book.open_id != 0)
        for token in inputs.rearms:
            self._rearm(now_s, token)
        self._govern(now_s, chunk_accepted)
        command = self._move(now_s, dt_s)
        self._judge_done(now_s)
        return self._decide(now_s, command)

    # -- inputs ----------------------------------------------------------------------------------------------

    def _take_joints(self, now_s: float, inputs: Inputs) -> None:
        try:
            self._joints.take(now_s, inputs.joints)
        except Invalid as error:  # A8: as if it had not come
            self._event(error, 0)
        newest = self._joints.newest
        if self._mover is None and newest is not None and self._joints.inside_limits:
            self._mover = Mover(self._contract, self._kinematics, self._executor, newest.q_rad)
            gripper = self._contract.gripper
            self._gripper_width_m = min(max(newest.gripper_width_m, gripper.closed_m), gripper.open_m)
        age_s = self._joints.age_s(now_s)
        self._bad[Reason.STATE_STALE] = not age_s <= self._contract.timeouts.joint_state_s
        # At start-up the arm is stopped anyway; the rearm guard asks for a fresh state.
        self._bad[Reason.STATE_LOST] = newest is not None and not age_s <= STATE_LOST_S

    def _take_operator(self, now_s: float, inputs: Inputs) -> None:
        if inputs.heartbeat_at_s is not None:
            self._heartbeat_at_s = max(self._heartbeat_at_s, inputs.heartbeat_at_s)
        armed_or_stopped_by_it = not self._monitor.is_active(Reason.START_UP)
        self._bad[Reason.OPERATOR_HEARTBEAT] = armed_or_stopped_by_it and self._heartbeat(now_s) == 2
        book = self._book
        if inputs.interrupts > 0:
            self._bad[Reason.INTERRUPT] = True
            self._executor.flush(now_s)
            book.close("interrupted")
            self._forget_instruction()
        for instruction_id in inputs.closes:
            if instruction_id and instruction_id == book.open_id:
                self._executor.flush(now_s)
                book.close()
                self._forget_instruction()
        stopped = self._monitor.latched or inputs.interrupts > 0
        for token, text, mode in inputs.instructs:
            if stopped:
                reason = self._monitor.reason.value or Reason.INTERRUPT.value
                self._replies.append(Reply(token, False, 0, f"the arm is stopped ({reason}): rearm first"))
            else:
                book.request(now_s, token, text, mode)
        for instruction_id, accepted, reason in inputs.verdicts:
            if book.verdict(instruction_id, accepted, reason):
                self._executor.flush(now_s)
                self._forget_instruction()
                self._first_chunk_missing = book.open_id != 0
        book.tick(now_s)
        self._show_again(now_s, inputs.policy_instruction_id)
        for token in inputs.home:
            if stopped:
                self._replies.append(Reply(token, False, 0, "the arm is stopped: rearm first"))
                continue
            if self._monitor.severity is Severity.HOLD and not self._first_chunk_missing:
                self._replies.append(Reply(token, False, 0, f"the arm holds ({self._monitor.reason.value})"))
                continue
            self._executor.flush(now_s)
            book.close()
            self._forget_instruction()
            self._home_asked = True
            self._replies.append(Reply(token, True))

    def _take_arm(self, now_s: float, arm: ArmStatus | None) -> None:
        """Rule 7: a latched stop of the arm controller latches the supervisor too."""
        self._arm = arm
        silent = arm is not None and not now_s - arm.reported_at_s <= ARM_LOST_S
        self._bad[Reason.ARM_LOST] = silent and not self._monitor.is_active(Reason.START_UP)
        if arm is None or silent or not arm.latched or self._monitor.latched:
            return
        after_rearm = arm.reported_at_s > self._rearmed_at_s
        took_it = arm.rearm_counter >= self._rearm_counter
        if after_rearm and (took_it or now_s - self._rearmed_at_s > ARM_ANSWERS_S):
            self._bad[Reason.ARM_LATCHED] = True
            self._event(Invalid("arm controller", arm.reason, "not latched", reason=Reason.ARM_LATCHED.value), 0)

    def _heartbeat(self, now_s: float) -> int:
        if not self._contract.operator_heartbeat_required:
            return 0
        return 1 if now_s - self._heartbeat_at_s <= self._contract.timeouts.operator_heartbeat_s else 2

    def _show_again(self, now_s: float, policy_instruction_id: int | None) -> None:
        if policy_instruction_id is not None:
            self._book.seen(policy_instruction_id)
        unknown = policy_instruction_id is not None and policy_instruction_id != self._book.open_id
        if unknown and now_s - self._shown_s >= SHOW_AGAIN_S:
            self._shown_s = now_s
            self._book.show_again()

    def _forget_instruction(self) -> None:
        """After the open instruction was closed or changed: nothing of the old one counts."""
        self._first_chunk_missing = self._finishing = self._done = self._home_asked = False
        self._done_probability, self._done_since_s = 0.0, math.inf

    # -- chunks ----------------------------------------------------------------------------------------------

    def _take_chunks(self, now_s: float, chunks: tuple[Chunk, ...]) -> bool:
        accepted = False
        self._rejected += max(len(chunks) - MAX_CHUNKS, 0)
        for chunk in chunks[-MAX_CHUNKS:]:
            try:
                self._accept(now_s, chunk)
            except Invalid as error:
                self._rejected += 1
                self._event(error, chunk.sequence)
                if error.reason == "non_finite":
                    self._bad_chunks_s.append(now_s)
                if error.reason == Reason.CONTRACT_MISMATCH.value:
                    self._bad[Reason.CONTRACT_MISMATCH] = True
            except Exception as error:  # noqa: BLE001 - E14: whatever a chunk does, the arm brakes and the loop lives
                self._rejected += 1
                self._bad[Reason.INTERNAL] = True
                self._event(Invalid("chunk executor", repr(error), "no exception", reason="internal"), chunk.sequence)
            else:
                self._accepted += 1
                accepted = True
        full = len(self._bad_chunks_s) == BAD_CHUNK_COUNT
        if full and now_s - self._bad_chunks_s[0] <= BAD_CHUNK_WINDOW_S:
            self._bad[Reason.BAD_CHUNKS] = True
            self._bad_chunks_s.clear()
        return accepted

    def _accept(self, now_s: float, chunk: Chunk) -> None:
        if self._mover is None or self._monitor.severity >= Severity.STOP:
            raise Invalid("severity", "STOP", "a rearmed arm", reason="stopped")
        if not self._book.open_id or self._finishing:
            raise Invalid("instruction_id", chunk.instruction_id, "an open instruction", reason="instruction_closed")
        chunk.validate(self._contract.n_joints)  # before its stamp is used
        self._executor.accept(
            now_s,
            chunk,
            self._book.open_id,
            self._joints.q_at(chunk.observed_at_s),
            self._mover.state.q,
            self._mover.reference_ahead(now_s),
        )
        if self._executor.clamped_rows:
            self._event(
                Invalid("rows at the workspace or joint bounds", self._executor.clamped_rows, "0", reason="clamped"),
                chunk.sequence,
            )
        self._first_chunk_missing = False
        self._done_probability = chunk.done_probability
        if not chunk.done_probability > DONE_ABOVE:
            self._done_since_s = math.inf
        elif math.isinf(self._done_since_s):
            self._done_since_s = now_s

    # -- conditions ------------------------------------------------------------------------------------------

    def _check(self, now_s: float) -> None:
        mover, executor = self._mover, self._executor
        waiting = self._book.open_id != 0 and self._first_chunk_missing
        self._bad[Reason.INSTRUCTION_CHANGED] = waiting
        needs_chunk = self._book.open_id != 0 and not waiting and not self._finishing and not self._monitor.latched
        look_s = now_s + LOOK_AHEAD_S
        stale = executor.exhausted(look_s) or not executor.age_s(now_s) <= self._contract.timeouts.chunk_s
        self._bad[Reason.CHUNK_STALE] = needs_chunk and stale
        driven = mover is not None and mover.mode in (Mode.FOLLOWING, Mode.PLANNED)
        self._bad[Reason.WORKSPACE] = driven and mover is not None and mover.leaves_workspace()
        following = mover is not None and mover.mode is Mode.FOLLOWING
        self._bad[Reason.TRACKING] = self._lost_track(now_s)
        self._bad[Reason.SPEED_LIMIT] = following and mover is not None and mover.slow_by_speed
        self._bad[Reason.TRACKING_LAG] = following and mover is not None and mover.slow_by_lag

    def _lost_track(self, now_s: float) -> bool:
        """The arm is not where it was told to be: stuck, pushed, or its controller has latched (rule 7)."""
        newest = self._joints.newest
        if self._mover is None or newest is None or self._monitor.latched or self._bad[Reason.STATE_STALE]:
            self._tracked_s = now_s  # nothing to compare with; STATE_STALE is reported by itself
        elif float(np.abs(self._mover.state.q - newest.q_rad).max()) <= TRACKING_RAD:
            self._tracked_s = now_s
        return now_s - self._tracked_s > TRACKING_FOR_S

    def _rearm(self, now_s: float, token: object) -> None:
        """D6: only at rest, with nothing wrong, with the operator present. Refused with the reason."""
        refusal = self._rearm_refusal(now_s)
        if refusal is not None:
            self._replies.append(Reply(token, False, 0, refusal))
            return
        newest = self._joints.newest
        assert self._mover is not None and newest is not None  # checked by the guard
        # The hold stays anchored on the last command, unless the arm was moved while it was stopped (a restart in
        # motion, a hand): then the command would step, and the arm controller would refuse it.
        moved = float(np.abs(self._mover.state.q - newest.q_rad).max())
        if moved > self._contract.tolerances.rearm_start_rad:
            self._mover.anchor(newest.q_rad)
        if self._monitor.latched:
            self._executor.flush(now_s)
        self._monitor.rearm()
        self._rearm_counter += 1
        self._rearmed_at_s = now_s
        self._replies.append(Reply(token, True))

    def _rearm_refusal(self, now_s: float) -> str | None:
        """Also while not latched: the arm controller may have latched by itself, and waits for a higher counter."""
        newest = self._joints.newest
        if newest is None:
            return "no joint state has arrived"
        if self._arm is not None and not now_s - self._arm.reported_at_s <= ARM_LOST_S:
            return "the arm controller does not report"
        if self._arm is not None and not self._arm.ready:
            return "the arm controller has no fresh joint state"
        blocking = self._monitor.blocks_rearm(now_s)
        if blocking is not None:
            return f"{blocking.value} is active or was within the last 0.5 s"
        if self._heartbeat(now_s) == 2:
            return "no operator heartbeat"
        fastest = float(np.abs(newest.qd_rad_s).max())
        limit = self._contract.tolerances.rest_rad_s
        if not fastest < limit or (self._mover is not None and self._mover.mode is not Mode.REST):
            return f"the arm moves: {fastest:.3f} rad/s, allowed: below {limit:g}"
        if self._mover is None or not self._joints.inside_limits:
            return "the arm is outside its soft joint limits: move it back by hand or with the robot's own pendant"
        return None

    # -- motion ----------------------------------------------------------------------------------------------

    def _govern(self, now_s: float, chunk_accepted: bool) -> None:
        """Choose between following, planned move and stop from the severity."""
        mover = self._mover
        if mover is None:
            return
        if self._monitor.severity >= Severity.STOP and (self._book.open_id or self._book.pending):
            self._executor.flush(now_s)
            self._book.close(f"stopped: {self._monitor.reason.value}")
            self._forget_instruction()
        if self._monitor.severity >= Severity.HOLD or self._finishing or not (self._book.open_id or self._is_homing()):
            if mover.mode is Mode.FOLLOWING and self._monitor.severity >= Severity.HOLD:
                self._executor.flush(now_s)  # what was computed before the fault is never executed
            elif any(self._bad[reason] for reason in (Reason.STATE_STALE, Reason.CLOCK, Reason.LATE_TICK)):
                self._executor.flush(now_s)
            if self._monitor.severity >= Severity.HOLD:
                self._home_asked = False
            mover.stop()
        elif self._home_asked and mover.mode is Mode.REST:
            self._home_asked = False
            mover.move_to(self._contract.poses.home_rad)
        elif self._home_asked:
            if mover.mode is not Mode.STOPPING:
                mover.stop()
        elif chunk_accepted and self._executor.active:
            mover.follow()

    def _is_homing(self) -> bool:
        return self._home_asked or (self._mover is not None and self._mover.mode is Mode.PLANNED)

    def _move(self, now_s: float, dt_s: float) -> Command | None:
        mover = self._mover
        if mover is None:
            return None
        if dt_s > 0.0:
            clamped_s = mover.limiter.clamp_dt(dt_s)
            try:
                mover.step(now_s, clamped_s)
            except Exception as error:  # noqa: BLE001 - E14: flush and brake in this very tick
                self._event(Invalid("motion", repr(error), "no exception", reason="internal"), 0)
                self._executor.flush(now_s)
                self._first_chunk_missing = self._book.open_id != 0
                mover.stop()
                mover.step(now_s, clamped_s)
        if mover.mode is Mode.FOLLOWING:
            wanted_open = self._executor.gripper_open(now_s)
            if wanted_open is not None:  # HOLD and STOP never come here: they keep the last grip
                gripper = self._contract.gripper
                self._gripper_width_m = gripper.open_m if wanted_open else gripper.closed_m
        mode = CommandMode.MOVE if mover.mode in (Mode.FOLLOWING, Mode.PLANNED) else CommandMode.HOLD
        if self._monitor.severity >= Severity.STOP:
            mode = CommandMode.STOP
        self._sequence += 1
        command = Command(
            q_rad=mover.state.q,
            qd_rad_s=mover.state.v,
            gripper_width_m=self._gripper_width_m,
            mode=mode,
            rearm_counter=self._rearm_counter,
            sequence=self._sequence,
            writer_id=self._writer_id,
            at_s=now_s,
        )
        command.validate(self._contract.n_joints)  # the last finite gate: nothing else may leave
        return command

    def _judge_done(self, now_s: float) -> None:
        """Done: the policy says so for 0.5 s, then the arm brakes, then arm and gripper are seen to be still."""
        if self._book.open_id and not self._finishing and now_s - self._done_since_s >= DONE_FOR_S:
            self._finishing = self._monitor.severity < Severity.HOLD
        if not self._finishing or self._mover is None or self._mover.mode is not Mode.REST:
            return
        if now_s - self._joints.unsettled_s >= SETTLED_FOR_S:
            self._executor.flush(now_s)
            self._done_id = self._book.open_id
            self._book.finish(now_s)
            probability = self._done_probability
            self._forget_instruction()
            self._done, self._done_probability = True, probability

    # -- result ----------------------------------------------------------------------------------------------

    def _event(self, error: Invalid, chunk_sequence: int) -> None:
        value = error.value
        number = float(value) if isinstance(value, (int, float, np.floating)) else math.nan
        self._events.append(SafetyEventData(error.reason, math.nan, number, -1, chunk_sequence, str(error)[:256]))

    def _phase(self) -> str:
        if self._monitor.severity >= Severity.STOP:
            return "stopped"
        if self._monitor.severity == Severity.HOLD and self._monitor.reason is not Reason.INSTRUCTION_CHANGED:
            return "holding"
        if self._book.open_id and not self._first_chunk_missing:
            return "moving"
        if self._is_homing():
            return "moving"
        if self._book.open_id or self._book.pending:
            return "waiting"
        return "done" if self._done else "idle"

    def _decide(self, now_s: float, command: Command | None) -> Decision:
        book_replies, publish = self._book.take()
        replies, events = tuple(self._replies) + book_replies, tuple(self._events)
        self._replies, self._events = [], []
        mover = self._mover
        return Decision(
            command=command,
            severity=self._monitor.severity,
            reason=self._monitor.reason,
            latched=self._monitor.latched,
            scale=mover.scale if mover is not None else 1.0,
            phase=self._phase(),
            instruction_id=self._book.open_id,
            text=self._book.open_text,
            publish_instruction=publish,
            replies=replies,
            events=events,
            done_probability=self._done_probability,
            tool_speed_m_s=mover.tool_speed() if mover is not None else 0.0,
            counters=Counters(self._ticks, self._late_ticks, self._accepted, self._rejected),
            heartbeat=self._heartbeat(now_s),
            done_id=self._done_id,
        )
