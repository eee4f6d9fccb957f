"""Looks at the pose in which the arm would come to rest if it braked now: may it stand there? (faults C2, C3, C4)

Every test has a direction: what is bad but gets no worse is allowed, so an arm at a boundary can always go back.
Only the end of the stop is looked at; on its way there, at most 0.16 rad a joint, the arm passes nothing narrower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_ros.core.collision import HOLD_M, SelfCollision
from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import MotionState, stop_displacement
from vla_ros.core.types import FloatArray

WORKSPACE_TOLERANCE_M = 0.003  # C2 allows 5 mm of overshoot at a face; the stop pose moves on while a tick passes
RETREAT_SLACK_M = 0.002  # choice: what is outside may move this much farther out while it turns round
# Radius of the elbow's sphere, kept above the table: choice, the forearm's box and drum are 0.09 m thick there. The
# other faces of the box are for the tool: the elbow of an arm that reaches into the box is behind it.
ELBOW_RADIUS_M = 0.09
# Below this distance the path is slowed, exp law of MoveIt Servo. Its 10 mm lie inside our hold; the arm comes no
# nearer than 70 mm to itself in table-top work (docs/decisions.md).
COLLISION_SLOW_M = 0.050
COLLISION_GAIN_1_M = -math.log(0.001) / COLLISION_SLOW_M
SINGULAR_SLOW, SINGULAR_HOLD = 17.0, 30.0  # condition number, C4: MoveIt Servo's figures
SINGULAR_LEAVING = 43.0  # slowed half as much on the way out
SINGULAR_SLACK = 0.2  # choice: a condition number that grows by less is not approaching


@dataclass(frozen=True, slots=True)
class Outlook:
    """`leaves_workspace`, `self_collision`, `singular`: hold. Scales in [0, 1]: share of the path's speed."""

    leaves_workspace: bool = False
    self_collision: bool = False
    singular: bool = False
    collision_scale: float = 1.0
    singular_scale: float = 1.0
    clearance_m: float = math.inf  # of the arm from itself, where it would stop
    condition: float = 1.0  # of the Jacobian, where it would stop

    @property
    def scale(self) -> float:
        return min(self.collision_scale, self.singular_scale)


class LookAhead:
    def __init__(self, contract: Contract, kinematics: Kinematics) -> None:
        self._limits = contract.limits
        self._box = contract.workspace
        self._kinematics = kinematics
        self._collision = SelfCollision(contract, kinematics)

    def look(self, state: MotionState) -> Outlook:
        q, q_stop = state.q, state.q + stop_displacement(state, self._limits)
        clearance, condition = self._collision.distance(q_stop), self._kinematics.condition(q_stop)
        self_collision = singular = False
        collision_scale = singular_scale = 1.0
        if not clearance >= COLLISION_SLOW_M:
            approaching = clearance < self._collision.distance(q) - RETREAT_SLACK_M
            if approaching:
                collision_scale = math.exp(COLLISION_GAIN_1_M * (clearance - COLLISION_SLOW_M))
            self_collision = approaching and not clearance >= HOLD_M
        if not condition <= SINGULAR_SLOW:
            approaching = condition > self._kinematics.condition(q) + SINGULAR_SLACK
            end = SINGULAR_HOLD if approaching else SINGULAR_LEAVING
            singular_scale = max(1.0 - (condition - SINGULAR_SLOW) / (end - SINGULAR_SLOW), 0.0)
            singular = approaching and not condition < SINGULAR_HOLD
        leaves = self._leaves_workspace(q, q_stop)
        return Outlook(leaves, self_collision, singular, collision_scale, singular_scale, clearance, condition)

    def _leaves_workspace(self, q: FloatArray, q_stop: FloatArray) -> bool:
        at_stop = self._outside(q_stop)
        if not (at_stop > WORKSPACE_TOLERANCE_M).any():
            return False
        worse = at_stop > self._outside(q) + RETREAT_SLACK_M
        return bool(((at_stop > WORKSPACE_TOLERANCE_M) & worse).any())

    def _outside(self, q: FloatArray) -> FloatArray:
        """(2,) m: how far the tool is outside the box, and the elbow's sphere below the table."""
        tool, elbow = self._kinematics.points(q)
        box = self._box
        tool_outside = np.maximum(np.maximum(box.lower_m - tool, tool - box.upper_m), 0.0).max()
        elbow_below = max(float(box.lower_m[2]) + ELBOW_RADIUS_M - float(elbow[2]), 0.0)
        return np.array([tool_outside, elbow_below])
