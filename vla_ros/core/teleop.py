"""What a hand asks for becomes a tool target, and the target a chunk like a policy's. The supervisor judges both alike.

A twist (share of the chosen speed, base or tool axes) moves a target pose; a chunk says where that motion would be in
the next moments. It goes on for COAST_S and then stands: whoever falls silent stops the arm. Time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import SETTLED_RAD_S
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import ActionSpace, FloatArray, JointSample, require_finite, require_range, require_vector

# Choice: a person notices 0.1 s little; more often the executor begins new seams before the old ones end.
CHUNK_PERIOD_S = 0.1
COAST_S = 0.25  # choice: two chunk periods and a half; so long the motion goes on when the next chunk does not come
SPEED_UP_1_S = 5.0  # choice: share of the chosen speed per second; full speed after 0.2 s
# In fake time at 0.1 m/s, ten chunks a second: rows that jump from where the arm is to the target let the executor take
# the jump for lag, and the arm drifts off; merged over 0.25 to 0.6 s none of that is left.
MERGE_S = 0.4
# The same: a target that stands when it is let go calls the arm back by 12 mm, at rest after 0.6 s; one that gives way
# by 0.1 s of the arm's speed by 1 mm, after 0.3 s; by 0.2 s, after 0.9 s.
STOP_S = 0.1
LEASH_M, LEASH_RAD = 0.05, 0.3  # choice: so far may the target run ahead of an arm that is held back
BOX_MARGIN_M = 0.01  # choice: the target stays this far inside the workspace, so that its wall is no fault
DT_MAX_S = 0.2  # choice: after a longer pause the target moves on by no more than this
WIDE_OPEN = 0.9  # choice: share of the opening from which on the hand is open; below it may hold something
UNCHANGED = 0.5  # gripper column between the two thresholds of `chunks`: nothing changes
SPEEDS_M_S = (0.02, 0.05, 0.1, 0.2)  # choice: from threading a needle to crossing the table
TURN_RAD_PER_M = 5.0  # choice: 0.25 rad/s at 0.05 m/s


@dataclass(frozen=True, slots=True)
class Twist:
    """Shares of the chosen speed, -1 to 1: `linear` (3,) along and `angular` (3,) about x, y, z."""

    linear: FloatArray
    angular: FloatArray

    @classmethod
    def rest(cls) -> Twist:
        return cls(np.zeros(3), np.zeros(3))

    def validate(self) -> None:
        for name in ("linear", "angular"):
            value = getattr(self, name)
            require_vector(name, value, 3)
            if not float(np.abs(value).max()) <= 1.0:
                raise Invalid(name, value.tolist(), "-1 to 1 each")

    def __add__(self, other: Twist) -> Twist:
        """Of two hands at once, neither faster than full speed."""
        return Twist(np.clip(self.linear + other.linear, -1.0, 1.0), np.clip(self.angular + other.angular, -1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Speeds:
    """The steps of translation [m/s], increasing, and how much rotation goes with them [rad/m]."""

    steps_m_s: tuple[float, ...] = SPEEDS_M_S
    turn_rad_per_m: float = TURN_RAD_PER_M

    def validate(self, tool_m_s: float) -> None:
        """`tool_m_s`: the contract's bound of the tool."""
        require_finite("speeds_m_s", list(self.steps_m_s))
        if not (self.steps_m_s and all(0.0 < v <= tool_m_s for v in self.steps_m_s)):
            raise Invalid("speeds_m_s", list(self.steps_m_s), f"one or more, each above 0, up to {tool_m_s:g} m/s")
        if not list(self.steps_m_s) == sorted(set(self.steps_m_s)):
            raise Invalid("speeds_m_s", list(self.steps_m_s), "increasing")
        require_range("turn_rad_per_m", self.turn_rad_per_m, 0.1, 20.0)


class Teleoperation:
    """The target, the speed step and the grip. One thread. `now_s` is the steady clock."""

    def __init__(self, contract: Contract, kinematics: Kinematics, speeds: Speeds | None = None) -> None:
        self._contract, self._kinematics = contract, kinematics
        self._speeds = speeds or Speeds()
        self._speeds.validate(contract.speed.tool_m_s)
        self._step = min(1, len(self._speeds.steps_m_s) - 1)
        self.tool_axes = False  # a twist is meant in axes of the tool, else of the base
        self._open: bool | None = None  # wanted grip; None: nothing wanted since control was taken
        self._at_s = -math.inf
        self._pace = Twist.rest()  # what the target moves with now, on its way to what is asked for
        self._R, self._p = np.eye(3), np.zeros(3)  # target: T_base_tool

    @property
    def speed_m_s(self) -> float:
        return self._speeds.steps_m_s[self._step]

    @property
    def target(self) -> tuple[FloatArray, FloatArray]:
        """(R, p) of the tool in the base frame."""
        return self._R, self._p

    def faster(self, steps: int) -> None:
        """Or slower, by a negative number of steps."""
        self._step = min(max(self._step + steps, 0), len(self._speeds.steps_m_s) - 1)

    def toggle_grip(self, width_m: float) -> bool:
        """True: it shall open. The first time the measured opening says what it is: wide open closes, else opens."""
        require_finite("width_m", width_m)
        if self._open is None:
            self._open = width_m >= WIDE_OPEN * self._contract.gripper.open_m
        self._open = not self._open
        return self._open

    def anchor(self, now_s: float, joints: JointSample) -> None:
        """The target is where the arm is: while somebody else drives, or nothing may move."""
        joints.validate(self._contract.n_joints)
        self._R, self._p = self._kinematics.tool_pose(joints.q_rad)
        self._pace, self._at_s = Twist.rest(), now_s

    def let_go(self) -> None:
        """Somebody else drives, and may close or open the hand."""
        self._open = None

    def move(self, now_s: float, asked: Twist, joints: JointSample) -> None:
        """Move the target on to `now_s`. Raises `Invalid`, and stands, when anything is not as it should be."""
        require_finite("now_s", now_s)
        try:
            asked.validate()
            joints.validate(self._contract.n_joints)
        except Invalid:
            self._pace, self._at_s = Twist.rest(), now_s
            raise
        dt_s = min(max(now_s - self._at_s, 0.0), DT_MAX_S)
        self._at_s = now_s
        change = SPEED_UP_1_S * dt_s
        self._pace = Twist(
            self._pace.linear + np.clip(asked.linear - self._pace.linear, -change, change),
            self._pace.angular + np.clip(asked.angular - self._pace.angular, -change, change),
        )
        R, p = self._kinematics.tool_pose(joints.q_rad)
        if self._stands and float(np.abs(joints.qd_rad_s).max()) > SETTLED_RAD_S:
            # Let go while it moves: it stops where it can. A target that stood still would call it back.
            way = STOP_S * self._kinematics.tool_jacobian(joints.q_rad) @ joints.qd_rad_s  # (6,) m, rad
            self._R, self._p = pin.exp3(way[3:]) @ R, self._inside(p + way[:3])
        else:
            self._R, self._p = self._ahead(dt_s)
        self._hold_back(R, p)

    @property
    def _stands(self) -> bool:
        return not (self._pace.linear.any() or self._pace.angular.any())

    def _ahead(self, seconds: float) -> tuple[FloatArray, FloatArray]:
        """(R, p) of the target that much later, at the pace of now."""
        axes = self._R if self.tool_axes else np.eye(3)
        v, w = axes @ self._pace.linear, axes @ self._pace.angular
        v = v / max(1.0, float(np.linalg.norm(v)))  # two keys at once are no faster than one
        w = w / max(1.0, float(np.linalg.norm(w)))
        p = self._p + self.speed_m_s * seconds * v
        R = pin.exp3(self._speeds.turn_rad_per_m * self.speed_m_s * seconds * w) @ self._R
        return R, self._inside(p)

    def _inside(self, p: FloatArray) -> FloatArray:
        """Inside the workspace. A target outside, where an arm may have been led by hand, may come back, not go on."""
        box = self._contract.workspace
        low = np.minimum(box.lower_m + BOX_MARGIN_M, self._p)
        high = np.maximum(box.upper_m - BOX_MARGIN_M, self._p)
        return np.clip(p, low, high)

    def _hold_back(self, R: FloatArray, p: FloatArray) -> None:
        """The target stays near the measured tool (R, p): what a held arm was asked for is not made up for later."""
        far = float(np.linalg.norm(self._p - p))
        if far > LEASH_M:
            self._p = p + (self._p - p) * (LEASH_M / far)
        turned = pin.log3(self._R @ R.T)
        angle = float(np.linalg.norm(turned))
        if angle > LEASH_RAD:
            self._R = pin.exp3(turned * (LEASH_RAD / angle)) @ R

    def chunk(self, joints: JointSample) -> FloatArray:
        """(rows, cols) as in msg/ActionChunk, relative to the pose of `joints`, measured just before the last `move`.

        Row k is where the target is at `joints.measured_at_s + (k + 1) dt`, reached from where the arm is within
        MERGE_S: an executor takes the first rows for what the arm does already."""
        contract, q = self._contract, joints.q_rad
        action, late_s = contract.action, min(max(self._at_s - joints.measured_at_s, 0.0), DT_MAX_S)
        R0, p0 = self._kinematics.tool_pose(q)
        R_then, p_then = self._ahead(-late_s)
        away_p, away_R = p0 - p_then, pin.log3(R0 @ R_then.T)
        poses = []
        for since_s in action.dt_s * np.arange(1, action.rows + 1):
            R, p = self._ahead(min(float(since_s) - late_s, COAST_S))
            s = min(float(since_s) / MERGE_S, 1.0)
            left = (1.0 - s) ** 2 * (1.0 + 2.0 * s)  # from 1 to 0, at rest at both ends
            poses.append((pin.exp3(left * away_R) @ R, p + left * away_p))
        out = np.empty((action.rows, action.cols))
        out[:, -1] = UNCHANGED if self._open is None else float(self._open)
        if action.space is ActionSpace.JOINT_POSITION:
            R_rows, p_rows = (np.stack(part) for part in zip(*poses, strict=True))
            out[:, :-1] = self._kinematics.poses_to_joints(R_rows, p_rows, q)[0]
            return out
        for k, (R, p) in enumerate(poses):
            out[k, :3], out[k, 3:6] = p - p0, pin.log3(R @ R0.T)
        return out
