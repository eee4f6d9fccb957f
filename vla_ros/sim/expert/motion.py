"""How the expert moves: what a plan knows, what it may ask for in a row, and what follows from that.

No physics: fingers open and close at their speed, an object between closed fingers goes where they go. All lengths in
metres, angles in radians, base frame; the hand always points straight down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_ros.sim import choices
from vla_ros.sim.tasks import Task
from vla_ros.sim.world import World

DT_S = 0.05
SPEED_XY_M_S = 0.26
SPEED_Z_M_S = 0.20
SPEED_YAW_RAD_S = 0.8
APPROACH = 0.35  # share of the remaining distance per row: slows down smoothly near a goal
HOVER_M = 0.09  # above the height to go down to, while moving over the table
FUNNEL_SLOPE = 5.0  # height above that per metre of lateral error
ALIGNED_M = 0.006  # lateral error below which the hand goes all the way down
YAW_ARM_M = 0.02  # a yaw error counts like a lateral error on this lever
WAIT_M = 0.06  # above that height until the fingers are as they should be
RETREAT_Z_M = 0.22  # the hand goes up there when a task is done ...
AWAY_Z_M = 0.15  # ... and is away from this height on
OPEN_M = 0.08
FINGER_STEP_M = 0.005  # 0.10 m/s for one row
DWELL_ROWS = 4  # planned rest after the fingers have closed: real fingers start late and the limiter starts early
PAD_REACH_M = (0.014, 0.016)  # lateral and vertical error within which closing fingers catch the object
HANDLE_WIDTH_M = 0.020


@dataclass(slots=True)
class State:
    """What a plan knows, and changes row by row. The thing is the named object, the handle or the button's cap."""

    x: float  # tool
    y: float
    z: float
    yaw: float
    width: float  # between the fingers
    tx: float  # thing
    ty: float
    tz: float
    held: bool  # the thing is in the hand
    other: bool  # something else is
    dwell: int = 0  # rows of rest that are left after a grasp in this plan

    def lateral(self) -> float:
        """Distance of the tool from the thing, seen from above."""
        return math.hypot(self.tx - self.x, self.ty - self.y)

    def between(self) -> bool:
        """Closing fingers would catch the thing."""
        return self.lateral() < PAD_REACH_M[0] and abs(self.z - self.tz) < PAD_REACH_M[1]


@dataclass(slots=True)
class Move:
    """What a skill wants in one row: a goal for the tool, which it approaches, and open or closed fingers."""

    x: float
    y: float
    z: float
    yaw: float
    open: bool
    stay: bool = False  # fingers only
    speed: float = SPEED_XY_M_S


class Skill:
    """One task in one scene: a function of the state. A family of tasks is a subclass (see `SKILLS`)."""

    grip_width = 0.0  # of the thing, between the fingers; 0: it is not to be grasped

    def __init__(self, world: World, task: Task, thing: np.ndarray, holding: bool) -> None:
        """thing: (3,) position; holding: it is in the hand and may be."""
        self.world, self.task = world, task
        rotation, tool = world.tool_pose()
        _, _, width = world.joints()
        held = world.held()
        handle = world.holds_handle()
        other = (held is not None or handle) and not holding
        # yaw is 0 when the hand's x axis is the base's
        yaw = math.atan2(rotation[1, 0], rotation[0, 0])
        self.state = State(*map(float, tool), yaw, width, *map(float, thing), holding, other)
        self.other_width = HANDLE_WIDTH_M
        self.spot = (self.state.x, self.state.y, self.state.z)  # of the tool, to let go of what else is in the hand
        if other and held is not None:
            self.other_width = world.items[held].width_m
            x, y = choices.free_spot(world, held, tool[:2])
            self.spot = (x, y, self.state.z - world.clearance(held))

    def done(self) -> bool:
        """The task is fulfilled in the world and the hand is out of the way."""
        raise NotImplementedError

    def points(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What to move and where to, (3,) each: the policy is taught to point at them."""
        raise NotImplementedError

    def plan(self, s: State) -> Move:
        """The next row for an empty hand, or one that holds the named thing."""
        raise NotImplementedError

    def follow(self, s: State) -> None:
        """What the thing does by itself after a row."""

    def move(self, s: State) -> Move:
        """The next row. What does not belong in the hand is put down first."""
        if not s.other:
            return self.plan(s)
        x, y, z = self.spot
        z = funnel(z, math.hypot(x - s.x, y - s.y) - ALIGNED_M)
        lowered = s.z < self.spot[2] + 0.004 and z < self.spot[2] + 0.002
        return Move(x, y, z, s.yaw, open=lowered, stay=lowered)

    def step(self, s: State) -> bool:
        """Advance the plan by one row; returns whether the fingers are to open."""
        move = self.move(s)
        between = s.between()
        # the hand rises before it travels: lateral speed shrinks while it is below the height it should have
        free = min(max(1.2 - max(move.z - s.z, 0.0) / 0.05, 0.0), 1.0)
        dx = dy = dz = 0.0
        if not move.stay and s.dwell == 0:
            dx, dy, dz = move.x - s.x, move.y - s.y, move.z - s.z
            share = free * min(APPROACH, move.speed * DT_S / max(math.hypot(dx, dy), 1e-9))
            dx, dy, dz = dx * share, dy * share, dz * min(APPROACH, SPEED_Z_M_S * DT_S / max(abs(dz), 1e-9))
        if not move.stay and s.dwell == 0:
            most = SPEED_YAW_RAD_S * DT_S
            s.yaw += min(max((move.yaw - s.yaw) * APPROACH, -most), most)
        s.dwell = max(s.dwell - 1, 0)
        s.x, s.y, s.z = s.x + dx, s.y + dy, s.z + dz
        if s.held:
            s.tx, s.ty, s.tz = s.tx + dx, s.ty + dy, s.tz + dz
        self._fingers(s, move.open, between)
        self.follow(s)
        return move.open

    def _fingers(self, s: State, opening: bool, between: bool) -> None:
        if opening:
            s.width = min(s.width + FINGER_STEP_M, OPEN_M)
            s.other = s.other and s.width < self.other_width + 0.012
            if s.held and s.width > self.grip_width + 0.002:
                s.held = False
        elif not s.other:  # otherwise the fingers are on that object already
            closed = s.width - FINGER_STEP_M
            grip = self.grip_width
            blocked = grip > 0.0 and between and closed <= grip and s.width >= grip - 0.003
            s.width = grip if blocked else max(closed, 0.0)
            if grip > 0.0 and between and s.width <= grip + 0.001 and not s.held:
                s.held, s.dwell = True, DWELL_ROWS


def funnel(lowest: float, error: float) -> float:
    """Height for a lateral error beyond what is aligned: the nearer, the lower."""
    return lowest + min(HOVER_M, FUNNEL_SLOPE * max(0.0, error))


def up(s: State, opening: bool) -> Move:
    """Straight up and away."""
    return Move(s.x, s.y, RETREAT_Z_M, s.yaw, opening)


def down(yaw: np.ndarray) -> np.ndarray:
    """(K, 3, 3): hand pointing straight down, turned by yaw (K,)."""
    c, s, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    return np.stack([np.stack([c, s, zero], -1), np.stack([s, -c, zero], -1), np.stack([zero, zero, -one], -1)], -2)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """(K, 3) rotation vectors of (K, 3, 3), for angles below pi."""
    axis = np.stack(
        [
            rotation[:, 2, 1] - rotation[:, 1, 2],
            rotation[:, 0, 2] - rotation[:, 2, 0],
            rotation[:, 1, 0] - rotation[:, 0, 1],
        ],
        -1,
    )
    sine = np.linalg.norm(axis, axis=-1, keepdims=True) / 2
    cosine = (np.trace(rotation, axis1=1, axis2=2)[:, None] - 1) / 2
    angle = np.arctan2(sine, cosine)
    return axis / 2 * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 1.0)
