"""The arm controller's pure half: the last check before the arm, and a stop of its own.

It trusts the supervisor no more than the supervisor trusts the policy. When commands stop coming, or one is bad, or
an interrupt arrives, it brakes by itself and stays latched until the operator's rearm reaches it as a higher
counter. Time is an argument; one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.limits import MotionState, PlannedMotion, measured_state, plan_move, plan_stop
from vla_ros.core.tracking import TRACKING_FOR_S, TRACKING_RAD
from vla_ros.core.types import ArmStatus, Command, CommandMode, FloatArray, JointSample

STATE_LOST_S = 0.5  # fault A7
# A command is late after two periods. Braking begins then, but is not latched before the timeout: a jerk-limited
# brake has lost 0.4 mrad and 0.03 rad/s in 35 ms (50 rad/s^3), so a late command is taken up again without harm.
LATE_PERIODS = 2.0
STEP_TOLERANCE_PERIODS = 0.5  # clock and rounding: a command may be this much farther than v_max allows
JOIN_SPEED_FACTOR = 0.3  # choice: how fast the last 0.02 rad to the first command are closed


@dataclass(frozen=True, slots=True)
class ArmOutput:
    q_rad: FloatArray  # (n,)
    qd_rad_s: FloatArray  # (n,)
    gripper_width_m: float
    latched: bool
    reason: str  # why it is latched; empty otherwise


class ArmController:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._limits = contract.limits
        self._joints: JointSample | None = None
        self._writer_id = 0
        self._last: Command | None = None  # newest one taken from the adopted writer
        self._received_at_s = -math.inf
        self._seen_counter = 0
        self.latched, self.reason = True, "start_up"
        self._state: MotionState | None = None  # last output; None: nothing was ever driven
        self._state_at_s = 0.0
        self._commanded_at_s: float | None = None  # of the supervisor; None: our own brake, or a hold
        self._gripper_width_m = 0.0
        self._stop_begins = False  # latched in this update
        self._in_place_s = -math.inf  # when a standing arm was last where it is held
        self._brake: PlannedMotion | None = None
        self._brake_s = 0.0
        self._join: PlannedMotion | None = None  # from the hold position to the first command after a rearm
        self._join_s = 0.0
        self._now_s = -math.inf
        self.ignored = 0  # commands of a second writer, repeated or out of order

    def update(
        self, now_s: float, command: Command | None, joints: JointSample | None, interrupts: int
    ) -> ArmOutput | None:
        """What to send to the arm now; None when there is nothing new, or nothing was ever armed."""
        dt_s = min(max(now_s - self._now_s, 0.0), 2.0 * self._contract.period_s)
        self._now_s = max(self._now_s, now_s)
        self._take_joints(joints)
        if interrupts > 0:
            self._latch("interrupt")
        fresh = command is not None and self._take_command(now_s, command)
        age_s = now_s - self._received_at_s
        if not age_s <= self._contract.timeouts.safe_command_s:
            self._latch("command_timeout")
        if self._joints is None or not now_s - self._joints.measured_at_s <= STATE_LOST_S:
            self._latch("state_lost")
        if self._state is None:
            return None
        if not self.latched and fresh and self._last is not None:
            self._brake = None
            return self._follow(now_s, dt_s, self._last)
        if not self.latched and age_s <= LATE_PERIODS * self._contract.period_s:
            return None
        return self._stop(now_s, dt_s)

    def _take_joints(self, joints: JointSample | None) -> None:
        if joints is None:
            return
        try:
            joints.validate(self._contract.n_joints)
        except Invalid:
            return  # as if it had not come; its age counts
        if self._joints is None or joints.measured_at_s > self._joints.measured_at_s:
            self._joints = joints

    def status(self, now_s: float) -> ArmStatus:
        joints = self._joints
        fresh = joints is not None and now_s - joints.measured_at_s <= self._contract.timeouts.joint_state_s
        return ArmStatus(fresh, self.latched, self.reason, self._seen_counter, now_s)

    @property
    def supervisor_id(self) -> int:
        """Writer whose commands are taken; 0 before the first."""
        return self._writer_id

    # -- commands --------------------------------------------------------------------------------------------

    def _take_command(self, now_s: float, command: Command) -> bool:
        """True when the arm should go where the command says."""
        alive = now_s - self._received_at_s <= self._contract.timeouts.safe_command_s
        if self._writer_id not in (0, command.writer_id) and alive:
            self.ignored += 1  # E5: the adopted writer is alive, a second one is not obeyed
            return False
        if command.writer_id != self._writer_id:
            # A new writer starts from its own counter: its motion so far was never rearmed with us (E4).
            self._latch("new_writer")
            self._writer_id, self._last, self._seen_counter = command.writer_id, None, command.rearm_counter
        if self._last is not None and not command.sequence > self._last.sequence:
            self.ignored += 1
            return False
        try:
            self._check(command)
        except Invalid as error:
            self._latch(error.reason)
            return False
        previous, self._last, self._received_at_s = self._last, command, now_s
        if command.mode is CommandMode.STOP:
            self._latch("supervisor_stop")
        if not self.latched:
            if previous is None or not self._step_is_possible(previous, command):
                self._latch("command_step")
            return not self.latched
        return self._unlatch(now_s, command)

    def _check(self, command: Command) -> None:
        command.validate(self._contract.n_joints)
        low, high = self._limits.q_lo_rad, self._limits.q_hi_rad
        if not ((command.q_rad >= low - 1e-6) & (command.q_rad <= high + 1e-6)).all():
            raise Invalid("q_rad", command.q_rad.tolist(), "inside the soft limits", reason="command_range")
        gripper = self._contract.gripper
        if not gripper.closed_m - 1e-6 <= command.gripper_width_m <= gripper.open_m + 1e-6:
            raise Invalid("gripper_width_m", command.gripper_width_m, "the gripper's range", reason="command_range")

    def _step_is_possible(self, previous: Command, command: Command) -> bool:
        passed_s = min(max(command.at_s - previous.at_s, 0.0), self._contract.timeouts.safe_command_s)
        allowed_s = passed_s + STEP_TOLERANCE_PERIODS * self._contract.period_s
        return bool((np.abs(command.q_rad - previous.q_rad) <= self._limits.v_max_rad_s * allowed_s).all())

    def _unlatch(self, now_s: float, command: Command) -> bool:
        """Rule 7: only for a higher counter, at rest, with a first command at rest near the hold position."""
        tolerances, joints = self._contract.tolerances, self._joints
        if not command.rearm_counter > self._seen_counter or self._brake is not None or joints is None:
            return False
        fresh = now_s - joints.measured_at_s <= self._contract.timeouts.joint_state_s
        still = np.abs(joints.qd_rad_s).max() < tolerances.rest_rad_s
        hold = self._state.q if self._state is not None else joints.q_rad
        near = np.abs(command.q_rad - hold).max() <= tolerances.rearm_start_rad
        slow = np.abs(command.qd_rad_s).max() < tolerances.rest_rad_s
        if not (fresh and still and near and slow):
            self.reason = "rearm_mismatch"
            return False
        self._seen_counter, self.latched, self.reason = command.rearm_counter, False, ""
        self._join, self._join_s = None, 0.0
        if np.abs(hold - command.q_rad).max() > 0.0:
            difference = MotionState.at_rest(hold - command.q_rad)
            self._join = plan_move(self._limits, difference, np.zeros(hold.size), JOIN_SPEED_FACTOR)
        self._state, self._state_at_s, self._commanded_at_s = MotionState.at_rest(hold), now_s, None
        return True

    # -- motion ----------------------------------------------------------------------------------------------

    def _follow(self, now_s: float, dt_s: float, command: Command) -> ArmOutput:
        q, v = command.q_rad, command.qd_rad_s
        if self._join is not None:
            self._join_s += dt_s
            rest = self._join.at(self._join_s)
            q, v = q + rest.q, v + rest.v
            if self._join_s >= self._join.duration_s:
                self._join = None
        assert self._state is not None  # update() returned before otherwise
        # The acceleration is needed for a brake that continues smoothly. Between commands it is their difference, over
        # their own times: a command that was 5 ms late on its way would halve or double it, and so make a stop longer.
        before_s = self._commanded_at_s
        passed_s = now_s - self._state_at_s if before_s is None else command.at_s - before_s
        a = (v - self._state.v) / passed_s if passed_s >= 0.2 * self._contract.period_s else self._state.a
        a = np.clip(a, -self._limits.a_max_rad_s2, self._limits.a_max_rad_s2)
        self._state, self._state_at_s, self._commanded_at_s = MotionState(q, v, a), now_s, command.at_s
        self._gripper_width_m = command.gripper_width_m
        return ArmOutput(q, v, self._gripper_width_m, False, "")

    def _stop(self, now_s: float, dt_s: float) -> ArmOutput:
        """Brake from the last output, then stand there. The grip stays as it is."""
        assert self._state is not None
        if self._stop_begins and self._joints is not None and self._is_elsewhere(now_s, self._joints):
            # C5: stuck or pushed. From the last output the drives would go on pulling towards where the arm is not.
            self._state = measured_state(self._limits, self._joints.q_rad, self._joints.qd_rad_s)
            self._state_at_s, self._commanded_at_s = now_s, None
        elif self._was_put_elsewhere(now_s) and self._joints is not None:
            low, high = self._limits.q_lo_rad, self._limits.q_hi_rad
            self._state = MotionState.at_rest(np.clip(self._joints.q_rad, low, high))
        self._stop_begins = False
        if self._brake is None and self._state.moving:
            self._brake, self._brake_s = plan_stop(self._limits, self._state), 0.0
            dt_s = min(now_s - self._state_at_s, self._contract.timeouts.safe_command_s)  # since the last output
            self._join = None
        if self._brake is not None:
            self._brake_s += dt_s
            self._state, self._state_at_s, self._commanded_at_s = self._brake.at(self._brake_s), now_s, None
            if self._brake_s >= self._brake.duration_s:
                self._brake = None
        return ArmOutput(self._state.q, self._state.v, self._gripper_width_m, self.latched, self.reason)

    def _was_put_elsewhere(self, now_s: float) -> bool:
        """A latched arm stands elsewhere, for as long as C5 asks for: to go on holding would be to pull it back."""
        joints = self._joints
        standing = self.latched and self._brake is None and self._state is not None and not self._state.moving
        still = joints is not None and np.abs(joints.qd_rad_s).max() < self._contract.tolerances.rest_rad_s
        if not (standing and still and joints is not None and self._is_elsewhere(now_s, joints)):
            self._in_place_s = now_s
        return now_s - self._in_place_s > TRACKING_FOR_S

    def _is_elsewhere(self, now_s: float, joints: JointSample) -> bool:
        assert self._state is not None  # update() returned before otherwise
        fresh = now_s - joints.measured_at_s <= self._contract.timeouts.joint_state_s
        return fresh and bool(np.abs(self._state.q - joints.q_rad).max() > TRACKING_RAD)

    def _latch(self, reason: str) -> None:
        if not self.latched:  # the first reason stays
            self.latched, self.reason, self._stop_begins = True, reason, True
            self._in_place_s = self._now_s
