"""Skills that take a thing between the fingers: pick, put, stack, and the drawer by its handle."""

from __future__ import annotations

import math

import numpy as np

from vla_ros.sim import scene, verdict
from vla_ros.sim.expert.motion import (
    ALIGNED_M,
    AWAY_Z_M,
    FUNNEL_SLOPE,
    HANDLE_WIDTH_M,
    OPEN_M,
    WAIT_M,
    YAW_ARM_M,
    Move,
    Skill,
    State,
    funnel,
    up,
)
from vla_ros.sim.tasks import Task
from vla_ros.sim.world import World

GRASP_HEIGHT_M = 0.006  # close when this near to the grasp height
LOWEST_M = 0.014  # of the tool: fingertips 5 mm above the table
LIFT_M = 0.12  # "pick" ends this far above the grasp height
LIFTED_M = 0.09  # and is done from here on
LET_GO_M = 0.02  # fingers this much wider than the object do not touch it when the hand goes up
BOWL_TRANSIT_M = 0.155  # tool height when carrying over a bowl's rim
BOWL_RELEASE_M = 0.085  # tool height when letting go into a bowl
BOWL_ALIGNED_M = 0.020
BOWL_CATCH_M = (0.035, 0.095)  # an object let go this near to a bowl's middle and this low falls into it
PLACE_TRANSIT_M = 0.06  # above the height of letting go
PLACE_DROP_M = 0.001  # an object is let go this far above what it will stand on
PLACE_ALIGNED_M = {"put": 0.014, "stack": 0.006}  # go all the way down
PLACE_SLACK_M = (
    0.004,
    0.005,
)  # let go this far beside that, and this far above the lowest: a hand that shakes must, too
TRAY_SLOTS_M = (0.0, 0.055, -0.055)  # along the tray: the first one that is free
DRAWER_GOALS_M = {"open": 0.084, "close": 0.0}
DRAWER_REACHED_M = {"open": 0.078, "close": 0.006}
DRAWER_SPEED_M_S = 0.10  # low over the table, where a stop must not dip


class Grasp(Skill):
    """Getting hold of a thing; `goal_yaw` is how the hand is to be turned for it."""

    goal_yaw = 0.0

    def grasp(self, s: State) -> Move:
        """Above the thing, down a funnel, close."""
        turn = self.goal_yaw - s.yaw
        lowest = max(s.tz, LOWEST_M)
        error = max(s.lateral(), YAW_ARM_M * abs(turn))
        between = s.between()
        z = funnel(lowest, error - ALIGNED_M)
        opened = s.width > min(self.grip_width + 0.012, OPEN_M - 0.008)
        if not opened and not between:
            z = max(z, lowest + WAIT_M)
        arrived = error < ALIGNED_M + 0.002 and abs(s.z - lowest) < GRASP_HEIGHT_M
        close = arrived or (between and s.width < OPEN_M - 0.006)
        return Move(s.tx, s.ty, lowest if close else z, self.goal_yaw, open=not close)

    def let_go(self, s: State) -> Move:
        """Open the fingers around the thing, then go up."""
        near = s.lateral() < 0.03 and s.z < s.tz + 0.03
        if near and s.width < self.grip_width + LET_GO_M:
            return Move(s.x, s.y, s.z, s.yaw, open=True, stay=True)
        return up(s, opening=True)

    def hand_away(self) -> bool:
        s = self.state
        return s.width > OPEN_M - 0.010 and s.z > AWAY_Z_M


class Carry(Grasp):
    """Anything that begins with taking a named object."""

    def __init__(self, world: World, task: Task) -> None:
        index = world.index(task.pair)
        self.item = world.items[index]
        super().__init__(world, task, world.object_positions()[index], world.held() == index)
        self.grip_width = self.item.width_m
        if self.item.shape == "cube":
            yaw = float(world.object_yaws()[index])
            self.goal_yaw = (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4

    def thing(self) -> np.ndarray:
        """(3,) the named object."""
        return np.array([self.state.tx, self.state.ty, self.state.tz])


class Pick(Carry):
    def plan(self, s: State) -> Move:
        if s.held:
            return Move(s.x, s.y, self.item.half_height_m + LIFT_M, s.yaw, open=False)
        return self.grasp(s)

    def done(self) -> bool:
        s = self.state
        return s.held and s.tz - self.item.half_height_m > LIFTED_M

    def points(self) -> tuple[np.ndarray, None]:
        return self.thing(), None


class Place(Carry):
    """Putting the object somewhere: in a bowl it is dropped, on the tray or on another object it is set down."""

    def __init__(self, world: World, task: Task) -> None:
        super().__init__(world, task)
        self.into_bowl = task.family == "put" and task.target != "tray"
        if self.into_bowl:
            self.goal = world.bowl_positions()[world.bowls.index(str(task.target))]
        elif task.family == "put":
            self.goal = self._tray_slot()
        else:
            below = world.index(task.base)
            self.goal = world.object_positions()[below] + np.array([0.0, 0.0, world.items[below].half_height_m])

    def _tray_slot(self) -> np.ndarray:
        """(3,) a place on the tray's floor that no other object has; the one the object lies on, if it is there."""
        world, middle = self.world, self.world.tray_position() + np.array([0.0, 0.0, 2 * scene.TRAY_HALF_M[2]])
        named = world.index(self.task.pair)
        others = np.delete(world.object_positions(), named, axis=0)
        slots = [middle + np.array([0.0, y, 0.0]) for y in TRAY_SLOTS_M]
        free = [p for p in slots if np.linalg.norm(others[:, :2] - p[:2], axis=1).min() > 0.05]
        return (free or slots)[0]

    def _landed(self, s: State) -> bool:
        """The object is where it belongs, held or not."""
        dx, dy, dz = s.tx - self.goal[0], s.ty - self.goal[1], s.tz - self.goal[2]
        if self.into_bowl:
            return math.hypot(dx, dy) < BOWL_CATCH_M[0] and dz < BOWL_CATCH_M[1]
        low = abs(dz - self.item.half_height_m) < PLACE_DROP_M + PLACE_SLACK_M[1] + 0.002
        if self.task.family == "put":
            tray, (hx, hy, _) = self.world.tray_position(), scene.TRAY_HALF_M
            return low and abs(s.tx - tray[0]) < hx - 0.008 and abs(s.ty - tray[1]) < hy - 0.008
        return low and math.hypot(dx, dy) < verdict.STACKED_LATERAL_M - 0.002

    def plan(self, s: State) -> Move:
        if not s.held:
            return self.let_go(s) if self._landed(s) else self.grasp(s)
        if self.into_bowl:
            return self._drop(s)
        return self._set_down(s)

    def _drop(self, s: State) -> Move:
        x, y = float(self.goal[0]), float(self.goal[1])
        over = math.hypot(x - s.x, y - s.y)
        if over < BOWL_ALIGNED_M and s.z < BOWL_RELEASE_M + 0.012 and self._landed(s):
            return self.let_go(s)
        near = over < 0.8 * BOWL_ALIGNED_M
        z = BOWL_RELEASE_M if near else BOWL_TRANSIT_M + 0.03 * min(over / 0.1, 1.0)
        return Move(x, y, z, 0.0, open=False)

    def _set_down(self, s: State) -> Move:
        # the object has to get there, not the hand: it may sit askew between the fingers
        x, y = float(self.goal[0]) + s.x - s.tx, float(self.goal[1]) + s.y - s.ty
        lowest = float(self.goal[2]) + self.item.half_height_m + PLACE_DROP_M + s.z - s.tz
        over, aligned = math.hypot(x - s.x, y - s.y), PLACE_ALIGNED_M[self.task.family]
        if over < aligned + PLACE_SLACK_M[0] and s.z < lowest + PLACE_SLACK_M[1]:
            return self.let_go(s)
        return Move(x, y, lowest + min(PLACE_TRANSIT_M, FUNNEL_SLOPE * max(0.0, over - aligned)), 0.0, open=False)

    def follow(self, s: State) -> None:
        if not s.held and s.width < self.grip_width + 0.012 and self._landed(s):  # let go in this row
            s.tz = float(self.goal[2]) + (0.03 if self.into_bowl else self.item.half_height_m)

    def done(self) -> bool:
        return self.hand_away() and verdict.fulfilled(self.world, self.task)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        return self.thing(), self.goal


class Drawer(Grasp):
    grip_width = HANDLE_WIDTH_M

    def __init__(self, world: World, task: Task) -> None:
        handle = world.handle_position()
        super().__init__(world, task, handle, world.holds_handle())
        self.shut_x = float(handle[0]) + world.drawer_opening()
        self.handle = handle

    def plan(self, s: State) -> Move:
        target = str(self.task.target)
        opening = self.shut_x - s.tx
        reached = DRAWER_REACHED_M[target]
        if opening > reached if target == "open" else opening < reached:
            return self.let_go(s)
        if not s.held:
            return self.grasp(s)
        ahead = opening - DRAWER_GOALS_M[target]
        return Move(s.x + ahead, s.ty, s.tz, 0.0, open=False, speed=DRAWER_SPEED_M_S)

    def follow(self, s: State) -> None:
        s.ty, s.tz = float(self.handle[1]), float(self.handle[2])  # it only slides

    def done(self) -> bool:
        return self.hand_away() and verdict.fulfilled(self.world, self.task)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        goal = self.handle.copy()
        goal[0] = self.shut_x - DRAWER_GOALS_M[str(self.task.target)]
        return self.handle, goal
