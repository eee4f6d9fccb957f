"""What the arm did next, as a chunk: the label of a frame. One function for recordings of any origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import ActionSpace, FloatArray

TRACE_PI = 1e-6  # this near to half a turn the axis is read from the symmetric part


@dataclass(frozen=True)
class Track:
    """What was measured, and how wide the gripper was told to be; each on its own increasing ROS times [ns]."""

    stamp_ns: NDArray[np.int64]  # (m,)
    q_rad: FloatArray  # (m, n)
    told_ns: NDArray[np.int64]  # (c,)
    told_width_m: FloatArray  # (c,)

    def validate(self, n_joints: int) -> None:
        if self.stamp_ns.size < 2 or self.told_ns.size < 1:
            raise Invalid("trajectory", (self.stamp_ns.size, self.told_ns.size), "2 joint states, 1 gripper command")
        for name in ("stamp_ns", "told_ns"):
            if not (np.diff(getattr(self, name)) > 0).all():
                raise Invalid(f"trajectory.{name}", "not increasing", "increasing stamps")
        if self.q_rad.shape != (self.stamp_ns.size, n_joints) or self.told_width_m.shape != self.told_ns.shape:
            raise Invalid("trajectory", (self.q_rad.shape, self.told_width_m.shape), f"({n_joints} joints)")
        for name in ("q_rad", "told_width_m"):
            if not np.isfinite(getattr(self, name)).all():
                raise Invalid(f"trajectory.{name}", "NaN or infinite", "finite numbers", reason="non_finite")

    def q_at(self, t_ns: NDArray[np.int64]) -> FloatArray:
        """(k, n): measured joints, linear between samples; before the first and after the last the arm stands."""
        seconds = (self.stamp_ns - self.stamp_ns[0]) * 1e-9
        wanted = (t_ns - self.stamp_ns[0]) * 1e-9
        return np.stack([np.interp(wanted, seconds, q) for q in self.q_rad.T], axis=1)

    def width_at(self, t_ns: NDArray[np.int64]) -> FloatArray:
        """(k,): the newest command at each time; before the first one, the first."""
        return self.told_width_m[np.maximum(np.searchsorted(self.told_ns, t_ns, side="right") - 1, 0)]


def rotation_vector(R: FloatArray) -> FloatArray:
    """(3, 3) -> (3,) rad, the inverse of Rodrigues' formula; angles up to pi."""
    axis = 0.5 * np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])  # sin(angle) * axis
    sine, cosine = float(np.linalg.norm(axis)), 0.5 * (float(np.trace(R)) - 1.0)
    angle = float(np.arctan2(sine, cosine))
    if sine > TRACE_PI:
        return axis * (angle / sine)
    if cosine > 0.0:
        return axis
    column = int(np.argmax(np.diag(R)))  # half a turn: R = 2 a a^T - 1
    a = (R[:, column] + np.eye(3)[column]) / 2.0
    return a / np.linalg.norm(a) * angle


def by_hand(at_ns: NDArray[np.int64], told_ns: NDArray[np.int64], told: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(f,): whether a person drove at `at_ns` (f,), by what the supervisor said (`told`, (m,)) at `told_ns` (m,),
    increasing ROS times. Before its first word that one holds; where it said nothing, nobody did."""
    if not told_ns.size:
        return np.zeros(at_ns.shape, dtype=np.bool_)
    return told[np.maximum(np.searchsorted(told_ns, at_ns, side="right") - 1, 0)]


def chunks(contract: Contract, kinematics: Kinematics, at_ns: NDArray[np.int64], track: Track) -> NDArray[np.float32]:
    """(f, rows, cols) as in msg/ActionChunk, for frames at `at_ns` (f,) ROS time, relative to the pose at that time:
    between joint states, as the supervisor has it when it reads a chunk.

    Row k is where the arm was at `at + (k + 1) dt`, which is when it is due. Its gripper column is what the gripper was
    told in the middle of the motion towards that row: fingers take a command when that motion begins
    (`ChunkExecutor.gripper_open`). After the recording's end the arm stands where it was.
    """
    track.validate(contract.n_joints)
    rows, dt_ns = contract.action.rows, round(contract.action.dt_s * 1e9)
    due_ns = at_ns[:, None] + dt_ns * np.arange(1, rows + 1)  # (f, rows)
    q = track.q_at(due_ns.ravel()).reshape(*due_ns.shape, -1)  # (f, rows, n)
    width = track.width_at((due_ns - dt_ns // 2).ravel()).reshape(due_ns.shape)  # (f, rows)
    closed, opened = contract.gripper.closed_m, contract.gripper.open_m
    out = np.empty((*due_ns.shape, contract.action.cols), dtype=np.float32)
    out[..., -1] = np.clip((width - closed) / (opened - closed), 0.0, 1.0)
    if contract.action.space is ActionSpace.JOINT_POSITION:
        out[..., :-1] = q
        return out
    for f, q0 in enumerate(track.q_at(at_ns)):
        R0, p0 = kinematics.tool_pose(q0)
        for k in range(rows):
            R, p = kinematics.tool_pose(q[f, k])
            out[f, k, :3] = p - p0
            out[f, k, 3:6] = rotation_vector(R @ R0.T)
    return out
