"""The supervisor: one pure machine between a policy nobody trusts and an arm. `update(now, inputs) -> Decision`.

It reads no clock, logs nothing and knows no middleware. It may be called out of phase: the shell calls it at once
when an interrupt arrives and does not wait for the next tick. One thread at a time.

Its parts: what an operator asks (`operator.py`), the open instruction (`task.py`), which chunks get in (`intake.py`),
the arm controller's state (`arm_watch.py`), conditions and their clear rules (`rules.py`), motion (`motion.py`).
"""

from __future__ import annotations

import math

import numpy as np

from vla_ros.core.arm_watch import ArmWatch
from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.contract import Contract
from vla_ros.core.decision import Counters, Decision, EventLog, Inputs, SafetyEventData
from vla_ros.core.errors import Invalid
from vla_ros.core.gripper import RETRIES_MAX, GripperWatch
from vla_ros.core.instructions import Reply
from vla_ros.core.intake import ChunkIntake
from vla_ros.core.joints import JointWatch
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.lookahead import Outlook
from vla_ros.core.motion import Mode, Mover
from vla_ros.core.operator import HEARTBEAT_LOST, Operator
from vla_ros.core.perception_watch import judge_perception
from vla_ros.core.progress import SLOW_SCALE, ProgressWatch
from vla_ros.core.rules import FaultMonitor, Findings, Reason
from vla_ros.core.task import Task
from vla_ros.core.torque import TorqueWatch
from vla_ros.core.tracking import TrackingWatch
from vla_ros.core.types import Command, CommandMode, JointSample, Severity, Source

__all__ = ["Counters", "Decision", "Inputs", "Reply", "SafetyEventData", "Supervisor"]

STATE_LOST_S = 0.5  # A7
LATE_TICK_S = 0.1  # E10
RETREAT_STARTS_S = 1.0  # choice: time for a stop and for the 0.5 s of health that end a hold; then the request is void


class Supervisor:
    def __init__(self, contract: Contract, kinematics: Kinematics, writer_id: int) -> None:
        if not writer_id >= 1:
            raise Invalid("writer_id", writer_id, ">= 1")
        self._contract = contract
        self._kinematics = kinematics
        self._writer_id = writer_id
        self._events = EventLog()
        self._monitor = FaultMonitor()
        self._executor = ChunkExecutor(contract, kinematics)
        self._task = Task(self._executor)
        self._operator = Operator(contract, self._monitor, self._task)
        self._joints = JointWatch(contract)
        self._intake = ChunkIntake(contract, self._executor, self._joints, self._task, self._events)
        self._arm = ArmWatch(self._monitor, self._events)
        self._mover: Mover | None = None
        self._now_s = -math.inf
        self._sequence = 0
        self._gripper_width_m = 0.0
        self._tracking = TrackingWatch(contract)
        self._torque = TorqueWatch(kinematics)
        self._gripper = GripperWatch(contract)
        self._progress = ProgressWatch()
        self._ticks = self._late_ticks = 0
        self._bad: Findings = {}
        self._source = Source.POLICY  # who proposes motion (D10)
        self._change: tuple[object, Source] | None = None  # (token, who is to do so once the arm rests)

    @property
    def executor(self) -> ChunkExecutor:
        """For diagnostics only, in the thread that calls `update`."""
        return self._executor

    def update(self, now_s: float, inputs: Inputs) -> Decision:
        dt_s = now_s - self._now_s if math.isfinite(self._now_s) else self._contract.period_s
        self._bad = {}
        self._ticks += 1
        self._bad[Reason.CLOCK] = not dt_s > 0.0 or not inputs.clock_runs
        self._bad[Reason.LATE_TICK] = dt_s > LATE_TICK_S
        if dt_s > 2.0 * self._contract.period_s:
            self._late_ticks += 1
        if dt_s > self._contract.timeouts.safe_command_s and self._mover is not None:
            self._mover.fell_silent(dt_s - self._mover.limiter.clamp_dt(dt_s))
        self._now_s = max(self._now_s, now_s)

        self._take_joints(now_s, inputs.joints)
        self._operator.take(now_s, inputs, self._bad, self._source)
        for token, source in inputs.sources:
            self._choose_source(now_s, token, source)
        self._change_source(now_s)
        chunk_accepted = self._intake.take(
            now_s, inputs.chunks, None if self._monitor.latched else self._mover, self._bad
        )
        for token in inputs.retreats:
            self._ask_retreat(now_s, token)
        self._arm.take(now_s, inputs.arm, self._bad)
        judge_perception(now_s, self._contract, inputs.perception, self._bad)
        self._check(now_s)
        # On the latest time so far: what was bad while the clock had stepped back was not bad long ago.
        self._monitor.tick(self._now_s, self._bad, chunk_accepted, self._task.is_open)
        for reason in self._monitor.raised:
            self._events.raised(reason)
        for token in inputs.rearms:
            self._rearm(now_s, token)
        self._govern(now_s, chunk_accepted)
        command = self._move(now_s, dt_s)
        at_rest = self._mover is not None and self._mover.mode is Mode.REST
        holding = self._monitor.severity >= Severity.HOLD
        self._task.judge_done(now_s, holding, at_rest, self._joints.unsettled_s)
        return self._decide(now_s, command)

    def _take_joints(self, now_s: float, sample: JointSample | None) -> None:
        try:
            self._joints.take(now_s, sample)
        except Invalid as error:  # A8: as if it had not come
            self._events.note(error)
        self._bad[Reason.STATE_JUMP] = self._joints.jumped
        newest = self._joints.newest
        if newest is not None and self._joints.fresh:
            self._torque.take(newest)
        if self._mover is None and newest is not None and self._joints.inside_limits:
            self._mover = Mover(self._contract, self._kinematics, self._executor, newest.q_rad)
            gripper = self._contract.gripper
            self._gripper_width_m = min(max(newest.gripper_width_m, gripper.closed_m), gripper.open_m)
        age_s = self._joints.age_s(now_s)
        self._bad[Reason.STATE_STALE] = not age_s <= self._contract.timeouts.joint_state_s
        # At start-up the arm is stopped anyway; the rearm guard asks for a fresh state.
        self._bad[Reason.STATE_LOST] = newest is not None and not age_s <= STATE_LOST_S

    # -- conditions ------------------------------------------------------------------------------------------

    def _check(self, now_s: float) -> None:
        mover, executor, task = self._mover, self._executor, self._task
        waiting = task.is_open and task.first_chunk_missing
        self._bad[Reason.INSTRUCTION_CHANGED] = waiting
        needs_chunk = task.needs_chunks and not waiting and not self._monitor.latched
        following = mover is not None and mover.mode is Mode.FOLLOWING
        # A chunk that ends in a hold is not missed by anybody: what counts there is whether new ones come.
        ended = following and not executor.left_s(now_s) > 0.0
        stale = ended or not executor.age_s(now_s) <= self._contract.timeouts.chunk_s
        self._bad[Reason.CHUNK_STALE] = needs_chunk and stale
        outlook = mover.look() if mover is not None else Outlook()
        self._bad[Reason.WORKSPACE] = outlook.leaves_workspace
        self._bad[Reason.SELF_COLLISION] = outlook.self_collision
        self._bad[Reason.SINGULARITY] = outlook.singular
        self._bad[Reason.SELF_COLLISION_NEAR] = following and outlook.collision_scale < 1.0
        self._bad[Reason.SINGULARITY_NEAR] = following and outlook.singular_scale < 1.0
        self._bad[Reason.TRACKING] = self._lost_track(now_s)
        self._bad[Reason.CONTACT] = self._torque.contact
        self._bad[Reason.SPEED_LIMIT] = following and mover is not None and mover.slow_by_speed
        self._bad[Reason.TRACKING_LAG] = following and mover is not None and mover.slow_by_lag
        self._bad[Reason.CHUNK_ENDING] = following and mover is not None and mover.slow_by_end
        self._check_progress(now_s)
        self._check_gripper(now_s)

    def _lost_track(self, now_s: float) -> bool:
        """The arm is not where it was told to be: stuck, pushed, or its controller has latched (rule 7)."""
        newest = self._joints.newest
        if self._mover is None or newest is None or self._monitor.latched or self._bad[Reason.STATE_STALE]:
            self._tracking.reset()  # nothing to compare with; STATE_STALE is reported by itself
            return False
        return self._tracking.lost(now_s, self._mover.state, newest.q_rad)

    def _check_progress(self, now_s: float) -> None:
        mover, watch = self._mover, self._progress
        if mover is None or mover.mode is not Mode.FOLLOWING:
            watch.reset()
        else:
            if self._intake.newest is not None:
                watch.take_chunk(now_s, self._intake.newest)
            watch.take(now_s, mover.state.q, self._gripper_width_m, patient=self._source is Source.TELEOPERATION)
            mover.scale_max = SLOW_SCALE if watch.shaking else 1.0
        self._bad[Reason.SHAKING], self._bad[Reason.NO_PROGRESS] = watch.shaking, watch.lost

    def _check_gripper(self, now_s: float) -> None:
        newest, watch = self._joints.newest, self._gripper
        if self._mover is None or newest is None or self._monitor.latched or self._bad[Reason.STATE_STALE]:
            return
        watch.take(now_s, self._gripper_width_m, newest.gripper_width_m, self._mover.state.q, self._task.book.open_id)
        self._bad[Reason.GRIPPER_STUCK] = watch.stuck
        self._bad[Reason.OBJECT_DROPPED] = watch.dropped
        if watch.stuck and watch.failures > RETRIES_MAX:
            self._task.close(now_s, "the gripper does not move")

    def _choose_source(self, now_s: float, token: object, source: Source) -> None:
        """D10: one source at a time, changed at rest only. A moving arm brakes first, and meanwhile nobody is listened
        to; the open instruction stays open."""
        if self._change is not None:
            self._operator.replies.append(Reply(self._change[0], False, 0, "a newer request took its place"))
        self._change = (token, source)
        if source is not self._source:
            self._intake.listen_to(None)
            self._task.taken_over(now_s)
            if self._mover is not None:
                self._mover.stop()

    def _change_source(self, now_s: float) -> None:
        if self._change is None:
            return
        token, source = self._change
        if source is not self._source:
            if self._mover is not None and self._mover.mode is not Mode.REST:
                return
            self._source = source
            self._executor.release()
            if source is Source.POLICY and not self._task.book.judged:
                self._task.close(now_s, "handed back: the policy was not asked to do this")
        self._change = None
        self._intake.listen_to(source)
        self._monitor.acknowledge()
        self._operator.replies.append(Reply(token, True))

    # -- retreat ---------------------------------------------------------------------------------------------

    def _ask_retreat(self, now_s: float, token: object) -> None:
        """Closes the instruction, waits until nothing holds the arm any more, and goes back."""
        refusal = self._retreat_refusal()
        if refusal is None:
            self._task.close(now_s)
            self._task.retreat_until_s = now_s + RETREAT_STARTS_S
        self._operator.replies.append(Reply(token, refusal is None, 0, refusal or ""))

    def _retreat_refusal(self) -> str | None:
        if self._monitor.latched or self._bad.get(Reason.INTERRUPT, False):
            return "the arm is stopped: rearm first"
        forbids = self._monitor.forbids_retreat()
        if forbids is not None:
            return f"the arm holds ({forbids.value})"
        if self._mover is None or not self._mover.can_retreat:
            return "no executed path to go back along"
        return None

    # -- rearm -----------------------------------------------------------------------------------------------

    def _rearm(self, now_s: float, token: object) -> None:
        """D6: only at rest, with nothing wrong, with the operator present. Refused with the reason."""
        refusal = self._rearm_refusal(now_s)
        if refusal is not None:
            self._operator.replies.append(Reply(token, False, 0, refusal))
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
        self._monitor.rearm(self._task.is_open)
        self._gripper.retry()
        self._arm.rearmed(now_s)
        self._operator.replies.append(Reply(token, True))

    def _rearm_refusal(self, now_s: float) -> str | None:
        """Also while not latched: the arm controller may have latched by itself, and waits for a higher counter."""
        newest = self._joints.newest
        if newest is None:
            return "no joint state has arrived"
        refusal = self._arm.rearm_refusal(now_s)
        if refusal is not None:
            return refusal
        blocking = self._monitor.blocks_rearm(now_s)
        if blocking is not None:
            return f"{blocking.value} is active or was within the last 0.5 s"
        if self._operator.heartbeat(now_s) == HEARTBEAT_LOST:
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
        mover, task, severity = self._mover, self._task, self._monitor.severity
        if mover is None:
            return
        if self._bad[Reason.TRACKING] and self._joints.newest is not None:
            self._executor.flush(now_s)
            mover.stop_from(self._joints.newest.q_rad, self._joints.newest.qd_rad_s)
        if severity >= Severity.STOP and (task.is_open or task.book.pending):
            task.close(now_s, f"stopped: {self._monitor.reason.value}")
        if severity >= Severity.HOLD or task.finishing or not (task.is_open or self._is_homing()):
            if mover.mode is Mode.FOLLOWING and severity >= Severity.HOLD:
                self._executor.flush(now_s)  # what was computed before the fault is never executed
            elif any(self._bad[reason] for reason in (Reason.STATE_STALE, Reason.CLOCK, Reason.LATE_TICK)):
                self._executor.flush(now_s)
            if severity >= Severity.HOLD:
                task.home_asked = False
            if self._monitor.forbids_retreat() is not None:
                task.retreat_until_s = -math.inf
            mover.stop()
        elif task.home_asked or now_s <= task.retreat_until_s:
            if mover.mode is not Mode.REST:
                mover.stop()
            elif task.home_asked:
                task.home_asked = False
                mover.move_to(self._contract.poses.home_rad)
            else:
                task.retreat_until_s = -math.inf
                mover.retreat()
        elif chunk_accepted and self._executor.active:
            mover.follow()

    def _is_homing(self) -> bool:
        asked = self._task.home_asked or self._now_s <= self._task.retreat_until_s
        return asked or (self._mover is not None and self._mover.mode in (Mode.PLANNED, Mode.RETREATING))

    def _move(self, now_s: float, dt_s: float) -> Command | None:
        mover = self._mover
        if mover is None:
            return None
        if dt_s > 0.0:
            clamped_s = mover.limiter.clamp_dt(dt_s)
            reduced = self._monitor.is_active(Reason.REDUCED_SPEED)
            try:
                mover.limit_speed(self._contract.speed.reduced_m_s if reduced else self._contract.speed.tool_m_s)
                mover.step(now_s, clamped_s)
            except Exception as error:  # noqa: BLE001 - E14: flush and brake in this very tick
                self._events.note(Invalid("motion", repr(error), "no exception", reason="internal"))
                self._task.chunk_lost(now_s)
                mover.stop()
                mover.step(now_s, clamped_s)
        if mover.mode is Mode.FOLLOWING:
            wanted_open = self._executor.gripper_open(now_s)
            if wanted_open is not None:  # HOLD and STOP never come here: they keep the last grip
                gripper = self._contract.gripper
                self._gripper_width_m = gripper.open_m if wanted_open else gripper.closed_m
        mode = CommandMode.MOVE if mover.driven else CommandMode.HOLD
        if self._monitor.severity >= Severity.STOP:
            mode = CommandMode.STOP
        self._sequence += 1
        command = Command(
            q_rad=mover.state.q,
            qd_rad_s=mover.state.v,
            gripper_width_m=self._gripper_width_m,
            mode=mode,
            rearm_counter=self._arm.rearm_counter,
            sequence=self._sequence,
            writer_id=self._writer_id,
            at_s=now_s,
        )
        command.validate(self._contract.n_joints)  # the last finite gate: nothing else may leave
        return command

    # -- result ----------------------------------------------------------------------------------------------

    def _phase(self) -> str:
        task = self._task
        if self._monitor.severity >= Severity.STOP:
            return "stopped"
        if self._monitor.severity == Severity.HOLD and self._monitor.reason is not Reason.INSTRUCTION_CHANGED:
            return "holding"
        if self._is_homing() or (task.is_open and not task.first_chunk_missing):
            return "moving"
        if task.is_open or task.book.pending:
            return "waiting"
        return "done" if task.done else "idle"

    def _decide(self, now_s: float, command: Command | None) -> Decision:
        mover, task, operator = self._mover, self._task, self._operator
        book_replies, publish = task.book.take()
        replies, operator.replies = tuple(operator.replies) + book_replies, []
        return Decision(
            command=command,
            severity=self._monitor.severity,
            reason=self._monitor.reason,
            latched=self._monitor.latched,
            scale=mover.scale if mover is not None else 1.0,
            phase=self._phase(),
            instruction_id=task.book.open_id,
            text=task.book.open_text,
            publish_instruction=publish,
            replies=replies,
            events=self._events.take(),
            done_probability=task.done_probability,
            tool_speed_m_s=mover.tool_speed() if mover is not None else 0.0,
            speed_cap_m_s=mover.cap_m_s if mover is not None else self._contract.speed.reduced_m_s,
            counters=Counters(
                self._ticks, self._late_ticks, self._intake.accepted, self._intake.rejected, self._intake.cut
            ),
            heartbeat=operator.heartbeat(now_s),
            done_id=task.done_id,
            source=self._source,
            contact_monitored=self._torque.monitored,
        )
