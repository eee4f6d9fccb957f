"""Forward and inverse kinematics of the contract's arm, on pinocchio. All poses are in the contract's base frame.

An object holds pinocchio's work memory and is not thread-safe: each owner makes its own.
`q`: (n,) rad in contract order. `R`, `p`: rotation (3, 3) and position (3,) of T_base_tool, which maps tool to base.
"""

from __future__ import annotations

import math
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
SERVES_SHARE = 0.1  # choice: rows are 10 mm apart, a second step with the same Jacobian leaves 2 % of its error
# The seventh joint leaves the elbow free. It is drawn to the ready pose, slowly: at 20 rows a second this is at
# most 0.2 rad/s, a fifth of the joint speed. Both numbers are choices.
READY_GAIN = 0.05
READY_STEP_MAX_RAD = 0.01
WORLD_AXES = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
# One length unit for translations in the condition number of the Jacobian: about half the Panda's reach. With it the
# number is smallest where the arm works (docs/decisions.md has the figures), so that 17 and 30 mean trouble.
LENGTH_UNIT_M = 0.5
_EYE = np.eye(6)


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
        self._base = self._model.frames[base].placement
        self._base_R, self._base_p = np.array(self._base.rotation), np.array(self._base.translation)
        self._n = contract.n_joints
        # For the inverse, in model order:
        self._q_lo, self._q_hi = self.to_model(contract.limits.q_lo_rad), self.to_model(contract.limits.q_hi_rad)
        self._q_ready = self.to_model(contract.poses.ready_rad)

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
            J = pin.getFrameJacobian(self._model, self._data, frame, WORLD_AXES)
            out[point] = self._base_R.T @ J[:3, self._order]
        return out

    def speeds(self, q: FloatArray, qd: FloatArray) -> FloatArray:
        """(2,) m/s: of tool and elbow at joint speeds `qd` (n,) rad/s."""
        pin.forwardKinematics(self._model, self._data, self.to_model(q), self.to_model(qd))
        return np.array([self._speed(self._tool), self._speed(self._elbow)])

    def tool_speed(self, q: FloatArray, qd: FloatArray) -> float:
        """m/s, at joint speeds `qd` (n,) rad/s."""
        pin.forwardKinematics(self._model, self._data, self.to_model(q), self.to_model(qd))
        return self._speed(self._tool)

    def _speed(self, frame: int) -> float:
        linear = pin.getFrameVelocity(self._model, self._data, frame).linear
        return math.sqrt(linear @ linear)  # its length is the same in every frame's axes

    def condition(self, q: FloatArray) -> float:
        """Condition number of the tool's Jacobian, translations counted in LENGTH_UNIT_M; inf where it is singular."""
        # Neither the axes in which its rows are told nor the order of its columns changes a singular value.
        J = pin.computeFrameJacobian(self._model, self._data, self.to_model(q), self._tool, WORLD_AXES)  # (6, n)
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
        """Joint position near `q_seed` that puts the tool at (R, p), inside the soft limits. ok=False: not reached."""
        rows, ok = self.poses_to_joints(R[None], p[None], q_seed)
        return rows[0], ok

    def poses_to_joints(
        self, R: FloatArray, p: FloatArray, q_seed: FloatArray, miss: tuple[float, float] = (np.inf, np.inf)
    ) -> tuple[FloatArray, bool]:
        """Joint waypoints (rows, n) of tool poses, each solved from the one before; ok=False if any was not reached.

        Ends with the first row that is missed by more than `miss` [m, rad]: those after it are not looked at."""
        q = np.minimum(np.maximum(self.to_model(q_seed), self._q_lo), self._q_hi)
        self._place_tool(q)
        out = np.empty((len(p), self._n))
        all_ok, k = True, 0
        for k in range(len(p)):
            q, error, reached = self._reach(self._base * pin.SE3(R[k], p[k]), q)
            out[k] = q
            if not reached:
                all_ok = False
                if not _within(error, *miss):
                    break
        return out[: k + 1, self._order], all_ok

    def _reach(self, target: pin.SE3, q: FloatArray) -> tuple[FloatArray, FloatArray, bool]:
        """From `q`, where the tool is placed, to the target in world axes: the answer, where the tool is then placed,
        the error (6,) that is left, and whether that is small.

        Damped least squares, damping grows with the error (Sugihara 2011), so a target out of reach ends near it
        instead of thrashing. One Jacobian serves while each step leaves less than SERVES_SHARE of the error. The elbow
        moves a little towards the ready pose, once per call.
        """
        pull = np.minimum(np.maximum(READY_GAIN * (self._q_ready - q), -READY_STEP_MAX_RAD), READY_STEP_MAX_RAD)
        error = self._error(target)
        before, serves = float(error @ error), False
        for iteration in range(MAX_ITERATIONS):
            if not serves:
                J = pin.getFrameJacobian(self._model, self._data, self._tool, pin.LOCAL)  # (6, n)
                back = _damped_inverse(J, before)  # (n, 6)
            if iteration == 0:  # the pull acts only where it leaves the tool in place
                step = pull + back @ (error - J @ pull)
            else:
                step = back @ error
            wish = q + step
            inside = np.minimum(np.maximum(wish, self._q_lo), self._q_hi)
            if inside.tolist() != wish.tolist():  # for so few numbers a third of the time of an array comparison
                outward = ((q >= self._q_hi) & (step > 0.0)) | ((q <= self._q_lo) & (step < 0.0))
                if outward.any():  # a joint at its limit cannot help: let the others do its part
                    step = _damped_inverse(J * ~outward, before) @ error
                    inside = np.minimum(np.maximum(q + step, self._q_lo), self._q_hi)
            if not float(step @ step) <= STEP_MAX_RAD**2:
                step = step * min(STEP_MAX_RAD / float(np.abs(step).max()), 1.0)
                inside = np.minimum(np.maximum(q + step, self._q_lo), self._q_hi)
            q = inside
            self._place_tool(q)
            error = self._error(target)
            if _within(error, POSITION_TOLERANCE_M, ROTATION_TOLERANCE_RAD):
                return q, error, True
            now = float(error @ error)
            serves, before = now <= SERVES_SHARE**2 * before, now
        return q, error, False

    def _place_tool(self, q: FloatArray) -> None:
        """Work memory gets the tool and its Jacobian at `q`, model order."""
        pin.computeJointJacobians(self._model, self._data, q)
        self._tool_now = pin.updateFramePlacement(self._model, self._data, self._tool)

    def _error(self, target: pin.SE3) -> FloatArray:
        """(6,): twist that takes the placed tool to the target, metres over radians, in axes of the tool."""
        error: FloatArray = pin.log6(self._tool_now.actInv(target)).vector
        return error

    @staticmethod
    def turned(R: FloatArray, turns: FloatArray) -> FloatArray:
        """(rows, 3, 3): Exp(turn) R for each rotation vector (rows, 3) rad."""
        out: FloatArray = np.array([pin.exp3(turn) for turn in turns]).reshape(-1, 3, 3) @ R
        return out

    def rows_to_joints(
        self, data: FloatArray, space: ActionSpace, q_at_observation: FloatArray, q_seed: FloatArray
    ) -> tuple[FloatArray, bool]:
        """Joint waypoints (rows, n) of a chunk's rows, without the gripper column. `data` must be finite.

        Tool-delta rows d: p = p_obs + d[:3], R = Exp(d[3:6]) R_obs."""
        if space is ActionSpace.JOINT_POSITION:
            return np.array(data[:, : self._n], dtype=np.float64), True
        R, p = self.tool_pose(q_at_observation)
        return self.poses_to_joints(self.turned(R, data[:, 3:6]), p + data[:, :3], q_seed)


def _within(error: FloatArray, position_m: float, rotation_rad: float) -> bool:
    x, y, z, a, b, c = error.tolist()
    near = x * x + y * y + z * z <= position_m * position_m
    return bool(near and a * a + b * b + c * c <= rotation_rad * rotation_rad)


def _damped_inverse(J: FloatArray, error_square: float) -> FloatArray:
    """(n, 6) from a Jacobian (6, n); a zero column of J keeps its joint still."""
    A = J @ J.T + (0.01 * error_square + DAMPING_FLOOR) * _EYE  # (6, 6)
    inverse: FloatArray = np.asarray(np.linalg.solve(A, J).T, dtype=np.float64)
    return inverse
