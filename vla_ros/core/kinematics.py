"""Forward and inverse kinematics of the contract's arm, on pinocchio. All poses are in the contract's base frame.

An object holds pinocchio's work memory and is not thread-safe: each owner makes its own.
`q`: (n,) rad in contract order. `R`, `p`: rotation (3, 3) and position (3,) of T_base_tool, which maps tool to base.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pinocchio as pin
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.types import ActionSpace, FloatArray

POSITION_TOLERANCE_M = 1e-4
ROTATION_TOLERANCE_RAD = 1e-3
MAX_ITERATIONS = 12
STEP_MAX_RAD = 0.3  # of one iteration; a longer step leaves the region where the Jacobian means anything
DAMPING_FLOOR = 1e-7
# The seventh joint leaves the elbow free. It is drawn to the ready pose, slowly: at 20 rows a second this is at
# most 0.2 rad/s, a fifth of the joint speed. Both numbers are choices.
READY_GAIN = 0.05
READY_STEP_MAX_RAD = 0.01
# One length unit for translations in the condition number of the Jacobian: about half the Panda's reach. With it the
# number is smallest where the arm works (docs/decisions.md has the figures), so that 17 and 30 mean trouble.
LENGTH_UNIT_M = 0.5


@lru_cache(maxsize=8)
def read_urdf(urdf: Path, joint_names: tuple[str, ...]) -> tuple[pin.Model, pin.GeometryModel]:
    """The arm alone, with its collision geometry. Read only; every other joint (the fingers) is locked wide open."""
    full = pin.buildModelFromUrdf(str(urdf))
    geometry = pin.buildGeomFromUrdf(full, str(urdf), pin.GeometryType.COLLISION)
    q = pin.neutral(full)
    others = [i for i in range(1, full.njoints) if full.names[i] not in joint_names]
    for joint in others:
        index = full.joints[joint].idx_q
        if full.joints[joint].nq == 1 and np.isfinite(full.upperPositionLimit[index]):
            q[index] = full.upperPositionLimit[index]
    model, arm_geometry = pin.buildReducedModel(full, geometry, others, q)
    return model, arm_geometry


class Kinematics:
    def __init__(self, contract: Contract) -> None:
        self._model = read_urdf(contract.urdf_path, contract.joint_names)[0]
        if self._model.nq != contract.n_joints or self._model.nv != contract.n_joints:
            raise Invalid("joints", contract.joint_names, "single-axis joints of the URDF with bounds", reason="urdf")
        ids = [self._model.getJointId(name) for name in contract.joint_names]
        self._order = np.array([self._model.joints[i].idx_q for i in ids])  # contract -> model
        self._data = self._model.createData()
        self._tool = self._frame(contract.tool_frame)
        self._elbow = self._frame(contract.elbow_frame)
        base = self._frame(contract.base_frame)
        if self._model.frames[base].parentJoint != 0:
            raise Invalid("base_frame", contract.base_frame, "a link that no joint moves", reason="urdf")
        placement = self._model.frames[base].placement
        self._base_R, self._base_p = np.array(placement.rotation), np.array(placement.translation)
        self._q_lo, self._q_hi = contract.limits.q_lo_rad, contract.limits.q_hi_rad
        self._q_ready = contract.poses.ready_rad
        self._n = contract.n_joints

    @property
    def model(self) -> pin.Model:
        """The arm alone, fingers locked; not to be changed."""
        return self._model

    @property
    def order(self) -> NDArray[np.intp]:
        """(n,): index in the model of each joint of the contract."""
        return self._order

    def _frame(self, name: str) -> int:
        index: int = self._model.getFrameId(name)
        if index >= self._model.nframes:
            raise Invalid("frame", name, "a link of the URDF", reason="urdf")
        return index

    def to_model(self, q: FloatArray) -> FloatArray:
        """Joint values (n,) in the order of pinocchio's model."""
        model_q = np.empty(self._n)
        model_q[self._order] = q
        return model_q

    def _place(self, q: FloatArray, frame: int) -> tuple[FloatArray, FloatArray]:
        pin.forwardKinematics(self._model, self._data, self.to_model(q))
        placement = pin.updateFramePlacement(self._model, self._data, frame)
        R = self._base_R.T @ placement.rotation
        p = self._base_R.T @ (placement.translation - self._base_p)
        return R, p

    def tool_pose(self, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(R, p) of the tool centre point in the base frame."""
        return self._place(q, self._tool)

    def points(self, q: FloatArray) -> FloatArray:
        """(2, 3) m: tool centre point and elbow in the base frame."""
        pin.forwardKinematics(self._model, self._data, self.to_model(q))
        world = [pin.updateFramePlacement(self._model, self._data, i).translation for i in (self._tool, self._elbow)]
        points: FloatArray = (np.array(world) - self._base_p) @ self._base_R
        return points

    def point_jacobians(self, q: FloatArray) -> FloatArray:
        """(2, 3, n): linear velocity [m/s] of tool and elbow in base axes, per joint speed."""
        pin.computeJointJacobians(self._model, self._data, self.to_model(q))
        out = np.empty((2, 3, self._n))
        for point, frame in enumerate((self._tool, self._elbow)):
            J = pin.getFrameJacobian(self._model, self._data, frame, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED)
            out[point] = self._base_R.T @ J[:3, self._order]
        return out

    def speeds(self, q: FloatArray, qd: FloatArray) -> FloatArray:
        """(2,) m/s: of tool and elbow at joint speeds `qd` (n,) rad/s."""
        speeds: FloatArray = np.linalg.norm(self.point_jacobians(q) @ qd, axis=1)
        return speeds

    def condition(self, q: FloatArray) -> float:
        """Condition number of the tool's Jacobian, translations counted in LENGTH_UNIT_M; inf where it is singular."""
        J = self.tool_jacobian(q)  # (6, n)
        J[:3] /= LENGTH_UNIT_M
        singular = np.linalg.svd(J, compute_uv=False)  # (6,), largest first
        return float(singular[0] / singular[-1]) if singular[-1] > 0.0 else np.inf

    def tool_jacobian(self, q: FloatArray) -> FloatArray:
        """(6, n): linear [m/s] over angular [rad/s] velocity of the tool in base axes, per joint speed."""
        J = pin.computeFrameJacobian(
            self._model, self._data, self.to_model(q), self._tool, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )  # (6, n), model order
        out = np.empty((6, self._n))
        out[:3] = self._base_R.T @ J[:3, self._order]
        out[3:] = self._base_R.T @ J[3:, self._order]
        return out

    def inverse(self, R: FloatArray, p: FloatArray, q_seed: FloatArray) -> tuple[FloatArray, bool]:
        """Joint position near `q_seed` that puts the tool at (R, p), inside the soft limits. ok=False: not reached.

        Damped least squares, damping grows with the error (Sugihara 2011), so a target out of reach ends near it
        instead of thrashing. The elbow moves a little towards the ready pose, once per call.
        """
        q = np.minimum(np.maximum(q_seed, self._q_lo), self._q_hi)
        pull = np.clip(READY_GAIN * (self._q_ready - q), -READY_STEP_MAX_RAD, READY_STEP_MAX_RAD)
        error = self._error(R, p, q)
        for _ in range(MAX_ITERATIONS):
            J = self.tool_jacobian(q)  # (6, n)
            step = pull + self._step(J, error - J @ pull)  # the pull acts only where it leaves the tool in place
            outward = ((q >= self._q_hi) & (step > 0.0)) | ((q <= self._q_lo) & (step < 0.0))
            if outward.any():  # a joint at its limit cannot help: let the others do its part
                step = self._step(J * ~outward, error)
            largest = float(np.abs(step).max())
            if largest > STEP_MAX_RAD:
                step *= STEP_MAX_RAD / largest
            q = np.minimum(np.maximum(q + step, self._q_lo), self._q_hi)
            error = self._error(R, p, q)
            if self._close(error):
                return q, True
            pull = np.zeros(self._n)
        return q, False

    def _error(self, R: FloatArray, p: FloatArray, q: FloatArray) -> FloatArray:
        """(6,): from the tool at `q` to (R, p), metres over radians, base axes."""
        R_now, p_now = self.tool_pose(q)
        error = np.empty(6)
        error[:3] = p - p_now
        error[3:] = pin.log3(R @ R_now.T)
        return error

    @staticmethod
    def _close(error: FloatArray) -> bool:
        position, rotation = error[:3], error[3:]
        return bool(position @ position <= POSITION_TOLERANCE_M**2 and rotation @ rotation <= ROTATION_TOLERANCE_RAD**2)

    @staticmethod
    def _step(J: FloatArray, error: FloatArray) -> FloatArray:
        """(n,) damped least-squares step; a zero column of J keeps its joint still."""
        A = J @ J.T + (0.01 * float(error @ error) + DAMPING_FLOOR) * np.eye(6)  # (6, 6)
        step: FloatArray = J.T @ np.linalg.solve(A, error)
        return step

    def tool_targets(self, data: FloatArray, q_at_observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tool poses (rows, 3, 3) and (rows, 3) of tool-delta rows: p = p_obs + d[:3], R = Exp(d[3:6]) R_obs."""
        R_obs, p_obs = self.tool_pose(q_at_observation)
        R = np.stack([pin.exp3(row) @ R_obs for row in data[:, 3:6]])  # (rows, 3, 3)
        return R, p_obs + data[:, :3]

    def poses_to_joints(self, R: FloatArray, p: FloatArray, q_seed: FloatArray) -> tuple[FloatArray, bool]:
        """Joint waypoints (rows, n) of tool poses, each solved from the one before; ok=False if any was not reached."""
        q = q_seed
        out = np.empty((len(p), self._n))
        all_ok = True
        for k in range(len(p)):
            q, ok = self.inverse(R[k], p[k], q)
            out[k] = q
            all_ok = all_ok and ok
        return out, all_ok

    def rows_to_joints(
        self, data: FloatArray, space: ActionSpace, q_at_observation: FloatArray, q_seed: FloatArray
    ) -> tuple[FloatArray, bool]:
        """Joint waypoints (rows, n) of a chunk's rows, without the gripper column. `data` must be finite."""
        if space is ActionSpace.JOINT_POSITION:
            return np.array(data[:, : self._n], dtype=np.float64), True
        R, p = self.tool_targets(data, q_at_observation)
        return self.poses_to_joints(R, p, q_seed)
