"""The robot's own state as the policy sees it. Training and the live path call this one function; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics

FloatArray = NDArray[np.float64]
OPENING_COLUMN, TOOL_COLUMNS = -10, slice(-9, -6)  # of the features, for an arm of any number of joints


class StateFeatures:
    """Joint positions, gripper opening, tool pose: (n + 10,) float32. Not thread-safe (pinocchio's work memory)."""

    def __init__(self, contract: Contract) -> None:
        self._kinematics = Kinematics(contract)
        self._closed_m, self._open_m = contract.gripper.closed_m, contract.gripper.open_m
        self.size = contract.n_joints + 1 + 3 + 6

    def __call__(self, q_rad: FloatArray, gripper_width_m: float) -> NDArray[np.float32]:
        """q (n,) rad -> [q, opening 0..1, tool position in the base frame (3,) m, two columns of its rotation (6,)]."""
        rotation, position_m = self._kinematics.tool_pose(np.asarray(q_rad, dtype=np.float64))
        opening = (gripper_width_m - self._closed_m) / (self._open_m - self._closed_m)
        features = np.concatenate([q_rad, [min(max(opening, 0.0), 1.0)], position_m, rotation[:, 0], rotation[:, 1]])
        return features.astype(np.float32)  # (n + 10,)

    def of_states(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """states (m, n + 1): joint positions [rad] and gripper width [m] -> (m, n + 10)."""
        result = np.empty((len(states), self.size), dtype=np.float32)
        for i, state in enumerate(np.asarray(states, dtype=np.float64)):
            result[i] = self(state[:-1], float(state[-1]))
        return result
