"""Joint states: read by name, and watched over time.

Drivers publish joints in any order and beside joints of other bodies (fault A8).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.types import FloatArray, JointSample

HISTORY = 128  # samples kept to find the pose at an observation: 1.3 s at 100 Hz
JUMP_FACTOR = 3.0  # A9: times v_max dt
JUMP_DT_MIN_S = 0.02  # choice: two control periods; what arrives together was not measured together
SETTLED_RAD_S, SETTLED_GRIP_M = 0.05, 0.001  # choice: below these arm and gripper are still


class JointStateReader:
    """Turns one JointState (names, positions, velocities) into a `JointSample` in contract order. No state."""

    def __init__(self, contract: Contract) -> None:
        self._names = contract.joint_names
        self._gripper = contract.gripper.joint

    def read(
        self,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
        now_s: float,
        effort: Sequence[float] = (),
    ) -> JointSample:
        """`now_s`: steady clock at receipt. `effort` [Nm] may be empty. Raises `Invalid`; a refused sample counts as
        missing, never as zeros."""
        if len(set(names)) != len(names):
            raise Invalid("name", list(names), "each joint once", reason="state_invalid")
        if len(position) != len(names) or len(velocity) != len(names) or len(effort) not in (0, len(names)):
            sizes = (len(names), len(position), len(velocity), len(effort))
            raise Invalid("name, position, velocity, effort", sizes, "lists of equal length", reason="state_invalid")
        index = {name: i for i, name in enumerate(names)}
        missing = [name for name in (*self._names, self._gripper) if name not in index]
        if missing:
            raise Invalid("name", list(names), f"also {', '.join(missing)}", reason="state_invalid")
        order = [index[name] for name in self._names]
        sample = JointSample(
            q_rad=np.array([position[i] for i in order], dtype=np.float64),
            qd_rad_s=np.array([velocity[i] for i in order], dtype=np.float64),
            gripper_width_m=2.0 * float(position[index[self._gripper]]),  # one finger; the other mirrors it
            measured_at_s=now_s,
            effort_nm=np.array([effort[i] for i in order], dtype=np.float64) if len(effort) else None,
        )
        sample.validate(len(self._names))
        return sample


class JointWatch:
    """Newest sample, its age, the pose at an earlier time, and since when the arm is still. One thread."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._history: deque[JointSample] = deque(maxlen=HISTORY)
        self.newest: JointSample | None = None
        self.unsettled_s = -math.inf  # when arm or gripper was last seen moving
        self._width_m = math.nan
        self.jumped = self.fresh = False  # in the newest `take`: an impossible step (A9), a new sample

    def take(self, now_s: float, sample: JointSample | None) -> None:
        """Raises `Invalid` for a sample that is not whole; it then counts as missing. Old news is no news."""
        self.jumped = self.fresh = False
        if sample is None or (self.newest is not None and not sample.measured_at_s > self.newest.measured_at_s):
            return
        sample.validate(self._contract.n_joints)
        self.fresh = True
        if self.newest is not None:
            passed_s = max(sample.measured_at_s - self.newest.measured_at_s, JUMP_DT_MIN_S)
            possible = JUMP_FACTOR * self._contract.limits.v_max_rad_s * passed_s
            self.jumped = not (np.abs(sample.q_rad - self.newest.q_rad) <= possible).all()
        self.newest = sample
        self._history.append(sample)
        still = bool(np.abs(sample.qd_rad_s).max() <= SETTLED_RAD_S)
        if not (still and abs(sample.gripper_width_m - self._width_m) <= SETTLED_GRIP_M):
            self.unsettled_s, self._width_m = now_s, sample.gripper_width_m

    def age_s(self, now_s: float) -> float:
        return math.inf if self.newest is None else now_s - self.newest.measured_at_s

    @property
    def inside_limits(self) -> bool:
        limits = self._contract.limits
        if self.newest is None:
            return False
        return bool((self.newest.q_rad >= limits.q_lo_rad).all() and (self.newest.q_rad <= limits.q_hi_rad).all())

    def q_at(self, t_s: float) -> FloatArray:
        """Measured joints at a steady time, between the two nearest samples. Raises when none is near."""
        newer: JointSample | None = None
        for sample in reversed(self._history):
            if sample.measured_at_s <= t_s:
                if newer is None:
                    if t_s - sample.measured_at_s <= self._contract.timeouts.joint_state_s:
                        return sample.q_rad
                    break
                span = newer.measured_at_s - sample.measured_at_s
                return sample.q_rad + (t_s - sample.measured_at_s) / span * (newer.q_rad - sample.q_rad)
            newer = sample
        raise Invalid("observed_at_s", t_s, "within the last second of joint states", reason="no_state")
