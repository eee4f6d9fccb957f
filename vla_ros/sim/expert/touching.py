"""Skills of closed fingers: push an object off the mat, press the button."""

from __future__ import annotations

import math

import numpy as np

from vla_ros.sim import choices, scene, verdict
from vla_ros.sim.expert.motion import (
    ALIGNED_M,
    APPROACH,
    AWAY_Z_M,
    DT_S,
    WAIT_M,
    YAW_ARM_M,
    Move,
    Skill,
    State,
    funnel,
    up,
)
from vla_ros.sim.tasks import DIRECTIONS, Task
from vla_ros.sim.world import World

CLOSED_M = 0.015
CLOSE_ABOVE_M = 0.085  # fingers close only up here: lower down there may be something between them
FINGER_HALF_M = 0.010  # closed fingers are a square pillar, this far from the tool's axis to each side
FINGER_WIDTH_M = 0.010  # of one: forward and back it is one finger that pushes, or the object would part the two
TIP_M = 0.009  # from the tool down to the fingertips
PUSH_Z_M = 0.022  # tool height: fingertips touch near the object's middle, the palm passes over what stands around
PUSH_SPEED_M_S = 0.10  # a stop from here stays above the table: joints that brake do not keep the tool at its height
BEHIND_M = 0.018  # gap at which the hand comes down behind the object
LANE_M = 0.014  # half width of the lane behind the object in which it is pushed
HOLD_ROWS = 5  # planned rest at the end of a push or a press: the real arm lags, and would turn back before it is there
STOP_M = (0.020, 0.0125)  # outside the mat is far enough: while pushing (some roll back a little), and otherwise
PRESS_BELOW_M = 0.012  # the tips go this far below where the cap's face is when it is not pressed


class Touch(Skill):
    """What is done with closed fingers."""

    def fingers_open(self, s: State) -> bool:
        return s.width > CLOSED_M and s.z < CLOSE_ABOVE_M

    def above(self, s: State, x: float, y: float, lowest: float) -> Move:
        """Over a point with closed fingers and down to it."""
        error = max(math.hypot(x - s.x, y - s.y), YAW_ARM_M * abs(s.yaw))
        z = funnel(lowest, error - ALIGNED_M)
        if s.width > CLOSED_M:
            z = max(z, lowest + WAIT_M, CLOSE_ABOVE_M + 0.01)
        return Move(x, y, z, 0.0, open=self.fingers_open(s))

    def done(self) -> bool:
        return self.state.z > AWAY_Z_M and verdict.fulfilled(self.world, self.task)


class Push(Touch):
    def __init__(self, world: World, task: Task) -> None:
        index = world.index(task.pair)
        super().__init__(world, task, world.object_positions()[index], holding=False)
        item, self.way = world.items[index], str(task.target)
        self.dx, self.dy = DIRECTIONS[self.way]
        yaw = float(world.object_yaws()[index])
        corner = abs(math.cos(yaw)) + abs(math.sin(yaw)) if item.shape == "cube" else 1.0
        self.aside = FINGER_WIDTH_M / 2 if self.dx else 0.0  # y of the tool beside the object
        self.contact = item.radius_m * corner + FINGER_HALF_M  # from the object's middle to the tool, when they touch

    def _behind(self, s: State) -> tuple[float, float]:
        """Where the tool is, seen from the object: along the direction (negative: behind) and beside it."""
        x, y = s.x - s.tx, s.y - s.ty - self.aside
        return x * self.dx + y * self.dy, x * self.dy - y * self.dx

    def plan(self, s: State) -> Move:
        outside = verdict.beyond_mat(np.array([s.tx, s.ty]), self.way)
        along, beside = self._behind(s)
        low = s.z < PUSH_Z_M + 0.012 and s.width < CLOSED_M
        pushing = low and abs(beside) < LANE_M and -self.contact - 0.05 < along < -self.contact + 0.012
        if outside > STOP_M[0 if pushing else 1]:
            return up(s, self.fingers_open(s))
        if pushing:
            rest = choices.PUSH_PAST_M - outside - self.contact - along
            ahead = along + min(rest, PUSH_SPEED_M_S * DT_S / APPROACH)
            # rubber fingers that go down while they touch press the object onto the table, and it jams
            z = min(s.z, PUSH_Z_M + 0.006) if along > -self.contact - 0.004 else PUSH_Z_M
            return Move(s.tx + self.dx * ahead, s.ty + self.aside + self.dy * ahead, z, 0.0, open=False)
        gap = self.contact + BEHIND_M
        return self.above(s, s.tx - self.dx * gap, s.ty + self.aside - self.dy * gap, PUSH_Z_M)

    def follow(self, s: State) -> None:
        along, beside = self._behind(s)
        short = verdict.beyond_mat(np.array([s.tx, s.ty]), self.way) <= STOP_M[0]
        if s.z < PUSH_Z_M + 0.02 and abs(beside) < 0.02 and -self.contact < along < 0.0:
            s.tx, s.ty = s.tx + self.dx * (along + self.contact), s.ty + self.dy * (along + self.contact)
            if short and verdict.beyond_mat(np.array([s.tx, s.ty]), self.way) > STOP_M[0]:
                s.dwell = HOLD_ROWS

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        s = self.state
        thing = np.array([s.tx, s.ty, s.tz])
        return thing, thing + choices.push_way(thing, self.way) * np.array([self.dx, self.dy, 0.0])


class Press(Touch):
    def __init__(self, world: World, task: Task) -> None:
        super().__init__(world, task, world.cap_position(), holding=False)
        self.lit = world.lit
        self.rows_down = 0

    def plan(self, s: State) -> Move:
        if self.lit:
            return up(s, self.fingers_open(s))
        return self.above(s, s.tx, s.ty, scene.CAP_TOP_M + TIP_M - PRESS_BELOW_M)

    def follow(self, s: State) -> None:
        if s.lateral() < 0.015 and s.z - TIP_M < scene.CAP_TOP_M - scene.CAP_PRESSED_M - 0.001:
            self.rows_down += 1
        self.lit = self.lit or self.rows_down > HOLD_ROWS

    def points(self) -> tuple[np.ndarray, None]:
        return self.world.cap_position(), None
