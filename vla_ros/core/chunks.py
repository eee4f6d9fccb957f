"""The chunk executor: policy rows on the time axis become one smooth joint reference.

Row k of a chunk is due at observed_at + (k + 1) dt; its command leaves `actuation_delay_s` earlier, so that the arm
is there on time. Rows that fell due while the policy was computing are skipped by time, never played late. A new
chunk does not step: the difference to the old reference fades out (fault B4).

Rows become joint positions ahead of the time at which they shape the reference: most of a chunk in the tick that takes
it, the rest a few a tick. What is read is the same as if all were converted at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.curve import Curve, smooth_curve
from vla_ros.core.errors import Invalid
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import LOOK_AHEAD_S
from vla_ros.core.types import ActionSpace, Chunk, FloatArray

AGE_MAX_S = 0.400  # fault B7: a chunk that arrives later than this is discarded whole
FUTURE_MAX_S = 0.050  # choice: clock skew that is still believed
START_MAX_RAD = 0.35  # fault B12: a first target farther from the current command is a unit mix-up
WORKSPACE_REJECT_M = 0.05  # farther outside the box is rejected, nearer is clamped to it
APPROACH_M_S2 = 1.0  # choice: rows near a face of the box are slowed as if braking at this rate; the arm can do twice
JOINT_REJECT_RAD = 0.0873  # fault B2: 5 degrees
IK_RESIDUAL_M, IK_RESIDUAL_RAD = 0.005, 0.05  # choice: a row this close to its pose is good enough to follow
# A policy plans anew from where the arm was, so a seam fed back too fast makes the arm surge: it runs ahead, the next
# chunk pulls it back. One fed back too slowly makes it miss. Ripple of the tool speed with a stub at 7.5 Hz and 50 ms
# latency, and successes of the expert with 4 mm noise on its chunks (benchmarks/execution.py):
# 0.15 s 65 %, 0.3 s 28 % (40 of 40), 0.4 s 11 % (40 of 40), 0.5 s 5 % (12 of 14), 0.8 s 3 % (8 of 14).
FADE_MIN_S, FADE_MAX_S = 0.4, 1.0  # fault B4 asks for at least 0.1 s
FADE_SPEED = 0.5  # the fade uses at most this share of the joint speed
# Of the row that is read and the one after it: one more for the tangent, two more for the smoothing.
ROWS_AHEAD = 4
ROWS_A_TICK = 3  # choice: 0.1 ms of inverse kinematics; the rest of a chunk takes some three ticks
OPEN_ABOVE, CLOSE_BELOW = 0.6, 0.4  # gripper column; between the two nothing changes


@dataclass(frozen=True, slots=True)
class _Poses:
    """Of the tool, row by row."""

    R: FloatArray  # (3, 3) where the observation was taken
    turns: FloatArray  # (m, 3) rad, rotation vectors from there
    p: FloatArray  # (m, 3) m

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, rows: slice) -> _Poses:
        return _Poses(self.R, self.turns[rows], self.p[rows])


_NO_POSES = _Poses(np.eye(3), np.zeros((0, 3)), np.zeros((0, 3)))


def _rows_read(since_start_s: float, dt_s: float) -> int:
    """How many rows shape the reference up to LOOK_AHEAD_S from now, on the chunk's own clock."""
    return int(max(since_start_s + LOOK_AHEAD_S, 0.0) / dt_s) + ROWS_AHEAD


class ChunkExecutor:
    """Owned and called by the supervisor's loop thread only."""

    def __init__(self, contract: Contract, kinematics: Kinematics) -> None:
        self._contract = contract
        self._kinematics = kinematics
        self._curve: Curve | None = None
        self._rows: FloatArray = np.zeros((1, contract.n_joints))  # the observed position, then rows as converted
        self._rest = _NO_POSES
        self._gripper_rows: FloatArray = np.zeros(0)
        self._fade_start_s = self._fade_s = 0.0
        self._offset = self._offset_v = np.zeros(contract.n_joints)  # old minus new reference at the fade's start
        self._delay_s = 0.0  # how far slowing down has put the chunk's clock back
        self._open: bool | None = None  # wanted grip; None: nothing wanted yet
        self._observed_at_s = -np.inf
        self._flushed_at_s = -np.inf
        self._writer_id = self._sequence = 0
        self._accepted_at_s = -np.inf
        self.clamped_rows = 0  # of the newest chunk: rows moved to the workspace box or joint range

    @property
    def active(self) -> bool:
        return self._curve is not None

    @property
    def sequence(self) -> int:
        """Of the newest accepted chunk; 0 before the first."""
        return self._sequence

    @property
    def flushed_at_s(self) -> float:
        return self._flushed_at_s

    @property
    def seam(self) -> tuple[float, float, int]:
        """Of the newest hand-over, for diagnostics: jump of the reference [rad], of its speed [rad/s], rows skipped."""
        late_s = self._accepted_at_s - self._observed_at_s + self._contract.arm.actuation_delay_s
        skipped = max(int(late_s / self._contract.action.dt_s), 0) if np.isfinite(late_s) else 0
        return float(np.abs(self._offset).max()), float(np.abs(self._offset_v).max()), skipped

    def flush(self, now_s: float) -> None:
        """Forget the motion. Nothing computed from an observation up to now will ever be executed (invariant 8)."""
        self._curve, self._rest = None, _NO_POSES
        self._flushed_at_s = max(self._flushed_at_s, now_s)

    def release(self) -> None:
        """Whoever wrote the chunks so far need not fall silent before another is heard."""
        self._writer_id, self._accepted_at_s = 0, -np.inf

    def age_s(self, now_s: float) -> float:
        """Since the observation of the newest accepted chunk."""
        return now_s - self._observed_at_s

    def left_s(self, t_s: float) -> float:
        """From `t_s` to the chunk's last row at full speed, at least 0; 0 without a chunk."""
        if self._curve is None:
            return 0.0
        return max(self._curve.end_s + self._curve.dt_s * len(self._rest) + self._delay_s - t_s, 0.0)

    def slow_down(self, dt_s: float, scale: float) -> None:
        """Let the chunk's clock advance by `scale` dt in this tick: the path stays, the speed falls."""
        self._delay_s += (1.0 - scale) * dt_s
        self._fade_start_s += (1.0 - scale) * dt_s

    def accept(
        self,
        now_s: float,
        chunk: Chunk,
        instruction_id: int,
        q_at_observation: FloatArray,
        q_command: FloatArray,
        fade_from: tuple[float, FloatArray, FloatArray],
    ) -> None:
        """Take over a chunk, or raise `Invalid` with a reason id and change nothing.

        Whole or not at all, with one exception: rows that do not shape the reference yet are converted by `extend`.

        `q_command`: last commanded position. `fade_from`: (t, q, v) of the reference that is followed now, at the
        time up to which it has been read.
        """
        contract = self._contract
        chunk.validate(contract.n_joints)
        self._check_identity(now_s, chunk, instruction_id)
        gripper = chunk.data[:, -1]
        if not (np.abs(gripper - 0.5) <= 0.75).all():  # far outside 0..1: a width in another unit
            raise Invalid("gripper column", gripper.tolist(), "opening, 0 to 1", reason="gripper_range")
        start_s = chunk.observed_at_s - contract.arm.actuation_delay_s
        end_s = start_s + chunk.dt_s * len(chunk.data)
        if not now_s < end_s:
            raise Invalid("last row is due [s ago]", now_s - end_s, "in the future", reason="chunk_late")
        rows, rest, clamped = self._waypoints(chunk, q_at_observation, _rows_read(now_s - start_s, chunk.dt_s))
        rows = np.concatenate((q_at_observation[None], rows))  # (converted + 1, n)
        curve = smooth_curve(start_s, chunk.dt_s, rows)
        first = curve.at(now_s)[0] - q_command
        if not np.abs(first).max() <= START_MAX_RAD:
            joint = int(np.abs(first).argmax())
            raise Invalid(
                f"first target of {contract.joint_names[joint]} minus command [rad]", float(first[joint]),
                f"-{START_MAX_RAD} to {START_MAX_RAD}", reason="start_mismatch",
            )  # fmt: skip
        self._fade(*fade_from, curve)
        self._curve, self._rows, self._rest = curve, rows, rest
        self._gripper_rows, self._delay_s = gripper, 0.0
        self._observed_at_s, self._accepted_at_s = chunk.observed_at_s, now_s
        self._writer_id, self._sequence = chunk.writer_id, chunk.sequence
        self.clamped_rows = clamped

    def extend(self, now_s: float, rows: int = ROWS_A_TICK) -> None:
        """Convert and check the next rows; in every tick, before the reference is read.

        At least as many as will be read by then, however late the tick is. Raises `Invalid` when a row cannot be
        reached: the chunk ends before it.
        """
        if self._curve is None or not len(self._rest):
            return
        curve, rest, before = self._curve, self._rest, len(self._rows) - 1
        missing = _rows_read(now_s - self._delay_s - curve.start_s, curve.dt_s) - before
        count = min(max(rows, missing), len(rest))
        if count <= 0:
            return
        self._rest = _NO_POSES  # also when something below raises: what is not converted is never followed
        joints, missed = self._convert(rest[:count], self._rows[-1], before)
        if missed is None:
            self._rest = rest[count:]
        self._rows = np.concatenate((self._rows, joints))
        self._curve = smooth_curve(curve.start_s, curve.dt_s, self._rows)
        if missed is not None:
            raise missed

    def _check_identity(self, now_s: float, chunk: Chunk, instruction_id: int) -> None:
        contract = self._contract
        if chunk.contract_hash != contract.hash:
            raise Invalid("contract_hash", chunk.contract_hash, contract.hash, reason="contract_mismatch")
        if chunk.space != contract.action.space or not abs(chunk.dt_s - contract.action.dt_s) <= 1e-5:
            wanted = (int(contract.action.space), contract.action.dt_s)
            raise Invalid("space, dt_s", (int(chunk.space), chunk.dt_s), f"{wanted}", reason="action_mismatch")
        if chunk.instruction_id != instruction_id:
            raise Invalid("instruction_id", chunk.instruction_id, f"{instruction_id}", reason="instruction_closed")
        if chunk.writer_id == self._writer_id:
            if not (chunk.sequence > self._sequence and chunk.observed_at_s > self._observed_at_s):
                raise Invalid("sequence", chunk.sequence, f"> {self._sequence}, newer stamp", reason="chunk_order")
        elif now_s - self._accepted_at_s <= contract.timeouts.chunk_s:  # the adopted writer is alive
            raise Invalid("writer_id", chunk.writer_id, f"{self._writer_id}", reason="second_writer")
        if not chunk.observed_at_s > self._flushed_at_s:
            raise Invalid("observed_at_s", chunk.observed_at_s, f"> {self._flushed_at_s}", reason="flushed")
        age_s = now_s - chunk.observed_at_s
        if not age_s >= -FUTURE_MAX_S:
            raise Invalid("observation age [s]", age_s, ">= 0", reason="chunk_time")
        if not age_s <= AGE_MAX_S:
            raise Invalid("observation age [s]", age_s, f"<= {AGE_MAX_S:g}", reason="chunk_late")

    def _waypoints(self, chunk: Chunk, q_at_observation: FloatArray, first: int) -> tuple[FloatArray, _Poses, int]:
        """Joint rows inside workspace and soft limits, of tool poses the `first` ones; the poses of the others; and how
        many rows of the whole had to be clamped."""
        limits, box, n = self._contract.limits, self._contract.workspace, self._contract.n_joints
        if chunk.space is ActionSpace.JOINT_POSITION:
            rows = chunk.data[:, :n]
            inside = np.clip(rows, limits.q_lo_rad, limits.q_hi_rad)
            beyond = float(np.abs(rows - inside).max())
            if not beyond <= JOINT_REJECT_RAD:
                raise Invalid("joint rows beyond limits [rad]", beyond, f"<= {JOINT_REJECT_RAD}", reason="joint_range")
            p = np.stack([self._kinematics.tool_pose(row)[1] for row in inside])
            self._reject_far_outside(p)
            return inside, _NO_POSES, int((rows != inside).any(axis=1).sum())
        R, start = self._kinematics.tool_pose(q_at_observation)
        p = start + chunk.data[:, :3]
        self._reject_far_outside(p)
        inside = self._approach(np.minimum(np.maximum(p, box.lower_m), box.upper_m), start)
        poses = _Poses(R, chunk.data[:, 3:6], inside)
        rows, missed = self._convert(poses[:first], q_at_observation, 0)
        if missed is not None:
            raise missed
        return rows, poses[first:], int((p != inside).any(axis=1).sum())

    def _approach(self, p: FloatArray, start: FloatArray) -> FloatArray:
        """(rows, 3): from `start` (3,), no row comes nearer to a face of the box than it could still brake before:
        clamped rows alone stop dead at the face, which no arm can follow."""
        low, high = self._reachable(np.concatenate((start[None], p[:-1])))
        if ((p >= low) & (p <= high)).all():  # nearly always: no row is held back by the one before
            return p
        out, last = p.copy(), start
        for k in range(len(p)):
            out[k] = last = np.clip(p[k], *self._reachable(last))
        return out

    def _reachable(self, last: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest next position (..., 3) of a tool that is at `last` (..., 3)."""
        box, dt = self._contract.workspace, self._contract.action.dt_s
        up = dt * np.sqrt(2.0 * APPROACH_M_S2 * np.maximum(box.upper_m - last, 0.0))
        down = dt * np.sqrt(2.0 * APPROACH_M_S2 * np.maximum(last - box.lower_m, 0.0))
        # A tool outside may stand or come back, never go farther out.
        return np.minimum(last - down, box.upper_m), np.maximum(last + up, box.lower_m)

    def _reject_far_outside(self, p: FloatArray) -> None:
        box = self._contract.workspace
        beyond = float(np.maximum(box.lower_m - p, p - box.upper_m).max())
        if not beyond <= WORKSPACE_REJECT_M:
            raise Invalid("tool beyond the workspace [m]", beyond, f"<= {WORKSPACE_REJECT_M}", reason="workspace")

    def _convert(self, poses: _Poses, q_before: FloatArray, before: int) -> tuple[FloatArray, Invalid | None]:
        """Joint rows (m, n) of tool poses, `before` rows after the chunk's first; up to the first that is missed."""
        residual, p = (IK_RESIDUAL_M, IK_RESIDUAL_RAD), poses.p
        R = self._kinematics.turned(poses.R, poses.turns)
        rows, ok = self._kinematics.poses_to_joints(R, p, q_before, residual)
        for k, row in enumerate(() if ok else rows):
            R_row, p_row = self._kinematics.tool_pose(row)
            # Angle of the rotation that is left, from its trace.
            angle = float(np.arccos(np.clip(0.5 * (np.trace(R[k] @ R_row.T) - 1.0), -1.0, 1.0)))
            distance = float(np.linalg.norm(p[k] - p_row))
            if not (distance <= IK_RESIDUAL_M and angle <= IK_RESIDUAL_RAD):
                missed = (round(distance, 4), round(angle, 4))
                return rows[:k], Invalid(
                    f"row {before + k} is missed by [m, rad]", missed, f"<= {residual}", reason="unreachable"
                )
        return rows, None

    def _fade(self, start_s: float, q_old: FloatArray, v_old: FloatArray, curve: Curve) -> None:
        """Continue in position and speed from what was being followed."""
        q_new, v_new = curve.at(start_s)
        self._offset, self._offset_v = q_old - q_new, v_old - v_new
        v_max = self._contract.limits.v_max_rad_s
        wanted_s = float((1.5 * np.abs(self._offset) / (FADE_SPEED * v_max)).max())  # 1.5: peak speed of the fade
        self._fade_start_s, self._fade_s = start_s, min(max(wanted_s, FADE_MIN_S), FADE_MAX_S)

    def reference(self, t_s: float) -> tuple[FloatArray, FloatArray]:
        """(q_ref, v_ref) at `t_s` on the chunk's own clock at full speed. Only while `active`."""
        if self._curve is None:
            raise Invalid("reference", None, "a chunk", reason="no_chunk")
        q, v = self._curve.at(t_s - self._delay_s)
        s = (t_s - self._fade_start_s) / self._fade_s
        if s < 0.0:  # before the seam the old reference went on, here as a straight line
            return q + self._offset + s * self._fade_s * self._offset_v, v + self._offset_v
        if s < 1.0:
            # Cubic from (offset, offset speed) to (0, 0).
            slope = self._offset_v * self._fade_s
            c2, c3 = -3.0 * self._offset - 2.0 * slope, 2.0 * self._offset + slope
            q = q + self._offset + s * (slope + s * (c2 + s * c3))
            v = v + (slope + s * (2.0 * c2 + 3.0 * s * c3)) / self._fade_s
        return q, v

    def gripper_open(self, t_s: float) -> bool | None:
        """Wanted grip: the row being moved to decides, with hysteresis, never blended. None: nothing wanted yet.

        Fingers take a command when the motion towards its row begins, as in the demonstrations; waiting until the row
        is reached closes them 50 ms late, and the hand lifts off while they still close (seen in simulation)."""
        if self._curve is not None:
            k = int(np.floor((t_s - self._delay_s - self._curve.start_s) / self._curve.dt_s + 1e-6))
            if 0 <= k < len(self._gripper_rows):
                opening = float(self._gripper_rows[k])
                if opening > OPEN_ABOVE:
                    self._open = True
                elif opening < CLOSE_BELOW:
                    self._open = False
        return self._open
