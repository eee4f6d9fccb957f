"""Looks at the pose in which the arm would come to rest if it braked now: may it stand there? (faults C2, C3, C4)

Every bound lets the arm come back: what is beyond it already may get better, not worse (`Ratchet`).
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
RETREAT_SLACK_M = 0.003  # choice: so much worse may get what stands outside: a limiter that turns round backs up first
# Radius of the elbow's sphere, kept above the table: choice, the forearm's box and drum are 0.09 m thick there. The
# other faces of the box are for the tool: the elbow of an arm that reaches into the box is behind it.
ELBOW_RADIUS_M = 0.09
# Below this distance the path is slowed, exp law of MoveIt Servo. Its 10 mm lie inside our hold; the arm comes no
# nearer than 70 mm to itself in table-top work (docs/decisions.md).
COLLISION_SLOW_M = 0.050
COLLISION_GAIN_1_M = -math.log(0.001) / COLLISION_SLOW_M
SINGULAR_SLOW, SINGULAR_HOLD = 17.0, 30.0  # condition number, C4: MoveIt Servo's figures
SINGULAR_LEAVING = 43.0  # slowed half as much on the way out
SINGULAR_SLACK = 0.2  # choice: as RETREAT_SLACK_M, of a condition number


class Ratchet:
    """A bound that what lies beyond it may only come back to. Tightens with the arm; gives way at no speed.

    Comparing the stop pose with the present one alone would let an arm creep out: the slower, the less they differ.
    With every rest out there the slack shrinks to a quarter, so that all rests together let it get worse by at most
    4/3 of the slack. It is whole again where the arm has come back by as much, and after somebody else moved it.
    What rests before the bound gets half of the slack: enough to turn round, and little more than the bound.
    """

    def __init__(self, bound: float, slack: float) -> None:
        self._bound, self._slack = bound, slack
        self._left = slack
        self._whole_at = math.inf  # where beyond the bound it rested when the slack was whole
        self._resting = False
        self._allowed = -math.inf

    def exceeded(self, now: float, at_stop: float, at_rest: bool) -> bool:
        """`now`, `at_stop`: how bad it is, and will be."""
        if at_rest and not self._resting:
            came_back = now <= self._whole_at - self._slack
            was_moved = not now <= max(self._bound, self._allowed) + 2.0 * self._slack
            if now <= self._bound:
                self._left, self._whole_at = self._slack, math.inf
            elif came_back or was_moved:
                self._left, self._whole_at = self._slack, now
            else:
                self._left /= 4.0
        self._resting = at_rest
        back = now + (self._left if now > self._bound else self._slack / 2.0)
        self._allowed = back if at_rest else min(self._allowed, back)
        return not at_stop <= max(self._bound, self._allowed)


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
        self._limits, self._period_s = contract.limits, contract.period_s
        self._box = contract.workspace
        self._kinematics = kinematics
        self._collision = SelfCollision(contract, kinematics)
        self._too_near = Ratchet(-HOLD_M, RETREAT_SLACK_M)
        self._singular = Ratchet(SINGULAR_HOLD, SINGULAR_SLACK)
        self._tool_outside = Ratchet(WORKSPACE_TOLERANCE_M, RETREAT_SLACK_M)
        self._elbow_below = Ratchet(WORKSPACE_TOLERANCE_M, RETREAT_SLACK_M)

    def look(self, state: MotionState) -> Outlook:
        """From the last command. One period is added: what is found now stops the arm in the next command only."""
        dt, q = self._period_s, state.q
        following = MotionState(q + dt * (state.v + 0.5 * dt * state.a), state.v + dt * state.a, state.a)
        q_stop = following.q + stop_displacement(following, self._limits)
        at_rest = not state.moving
        tool_now, elbow_now = self._outside(q)
        tool_stop, elbow_stop = self._outside(q_stop)
        tool = self._tool_outside.exceeded(tool_now, tool_stop, at_rest)
        elbow = self._elbow_below.exceeded(elbow_now, elbow_stop, at_rest)
        # Where the stop pose is far from any trouble the present one needs no look: half of the time of this function.
        near_stop, condition_stop = self._collision.distance(q_stop), self._kinematics.condition(q_stop)
        near = near_stop if near_stop > COLLISION_SLOW_M else self._collision.distance(q)
        condition = condition_stop if condition_stop < SINGULAR_SLOW else self._kinematics.condition(q)
        return Outlook(
            leaves_workspace=tool or elbow,
            self_collision=self._too_near.exceeded(-near, -near_stop, at_rest),
            singular=self._singular.exceeded(condition, condition_stop, at_rest),
            collision_scale=_collision_scale(near_stop) if near_stop < near else 1.0,
            singular_scale=_singular_scale(condition_stop, approaching=condition_stop > condition),
            clearance_m=near_stop,
            condition=condition_stop,
        )

    def _outside(self, q: FloatArray) -> tuple[float, float]:
        """m: how far the tool is outside the box, and the elbow's sphere below the table."""
        tool, elbow = self._kinematics.points(q)
        box = self._box
        tool_outside = max(float(np.maximum(box.lower_m - tool, tool - box.upper_m).max()), 0.0)
        return tool_outside, max(float(box.lower_m[2] - elbow[2]) + ELBOW_RADIUS_M, 0.0)


def _collision_scale(clearance_m: float) -> float:
    return math.exp(min(COLLISION_GAIN_1_M * (clearance_m - COLLISION_SLOW_M), 0.0))


def _singular_scale(condition: float, approaching: bool) -> float:
    end = SINGULAR_HOLD if approaching else SINGULAR_LEAVING
    return min(max(1.0 - (condition - SINGULAR_SLOW) / (end - SINGULAR_SLOW), 0.0), 1.0)
