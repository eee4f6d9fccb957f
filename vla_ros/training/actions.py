"""What a model is taught to say: demonstrated chunks in the model's length and action space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import ActionSpace

# Smallest deviations that count as motion, so that a column that hardly moves (say, tilt) is not blown up into noise.
TOOL_FLOOR = (0.004, 0.004, 0.004, 0.03, 0.03, 0.03)  # m, rad: choices
JOINT_FLOOR_RAD = 0.02  # a choice
OPENING = 0.5  # opening 0..1 becomes -1..1


class ActionLabels:
    """Turns stored chunks (tool targets, see msg/ActionChunk) into training targets of `rows` rows in `space`.

    space: tool_delta (end-effector targets relative to the tool's pose, 7 columns) or joint_position (joints + 1)."""

    def __init__(self, contract: Contract, rows: int, space: str) -> None:
        self.rows, self.space = rows, ActionSpace[space.upper()]
        self.cols = self.space.cols(contract.n_joints)
        floor = TOOL_FLOOR if self.space is ActionSpace.TOOL_DELTA else (JOINT_FLOOR_RAD,) * contract.n_joints
        self.floor = np.array([*floor, OPENING], dtype=np.float32)  # (cols,)
        self._kinematics = Kinematics(contract)

    def __call__(self, states: NDArray[np.float32], chunks: NDArray[np.float32]) -> NDArray[np.float32]:
        """states (m, n + 1): q [rad] and gripper width [m] at the observation; chunks (m, R, 7), R >= rows.

        -> (m, rows, cols). Joint targets come from the same inverse kinematics as on the robot; where a pose cannot be
        reached, the nearest that was found."""
        cut = chunks[:, : self.rows]  # (m, rows, 7)
        if self.space is ActionSpace.TOOL_DELTA:
            return cut
        result = np.empty((len(cut), self.rows, self.cols), dtype=np.float32)
        for i, (state, chunk) in enumerate(zip(states.astype(np.float64), cut.astype(np.float64), strict=True)):
            q = state[:-1]
            result[i, :, :-1], _ = self._kinematics.rows_to_joints(chunk, ActionSpace.TOOL_DELTA, q, q)
        result[:, :, -1] = cut[:, :, -1]
        return result
