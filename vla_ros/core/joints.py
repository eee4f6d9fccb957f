"""Joint states by name. Drivers publish joints in any order and beside joints of other bodies (fault A8)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.types import JointSample


class JointStateReader:
    """Turns one JointState (names, positions, velocities) into a `JointSample` in contract order. No state."""

    def __init__(self, contract: Contract) -> None:
        self._names = contract.joint_names
        self._gripper = contract.gripper.joint

    def read(
        self, names: Sequence[str], position: Sequence[float], velocity: Sequence[float], now_s: float
    ) -> JointSample:
        """`now_s`: steady clock at receipt. Raises `Invalid`; a refused sample counts as missing, never as zeros."""
        if len(set(names)) != len(names):
            raise Invalid("name", list(names), "each joint once", reason="state_invalid")
        if len(position) != len(names) or len(velocity) != len(names):
            sizes = (len(names), len(position), len(velocity))
            raise Invalid("name, position, velocity", sizes, "three lists of equal length", reason="state_invalid")
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
        )
        sample.validate(len(self._names))
        return sample
