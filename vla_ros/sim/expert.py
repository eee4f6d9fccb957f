"""The scripted expert: privileged, for demonstrations only, never imported by the running graph.

It is a function of the present state: given where things are, it returns the chunk of tool poses that a good operator
would follow from here, for every task that makes sense in the scene. So a disturbed state gets a recovery as its
label, and one picture serves several sentences (both made training several times cheaper, see docs/decisions.md).

All arrays carry a leading axis of K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.sim import scene
from vla_ros.sim.tasks import FAMILIES, Task
from vla_ros.sim.world import World

ROWS = 16
DT_S = 0.05

SPEED_XY_M_S = 0.26
SPEED_Z_M_S = 0.20
SPEED_YAW_RAD_S = 0.8
APPROACH = 0.35  # share of the remaining distance per row: slows down smoothly near a goal
HOVER_M = 0.09  # above the grasp height while moving over the table
FUNNEL_SLOPE = 5.0  # height above the grasp per metre of lateral error
ALIGNED_M = 0.006  # lateral error below which the hand goes all the way down
YAW_ARM_M = 0.02  # a yaw error counts like a lateral error on this lever
GRASP_HEIGHT_M = 0.006  # close when this near to the grasp height
LIFT_M = 0.12  # "pick" ends this far above the grasp height
TRANSIT_Z_M = 0.155  # tool height when carrying over a bowl's rim
RELEASE_Z_M = 0.085  # tool height when letting go into a bowl
OVER_BOWL_M = 0.020
RETREAT_Z_M = 0.20
OPEN_M = 0.08
FINGER_STEP_M = 0.005  # 0.10 m/s for one row
DWELL_ROWS = 4  # planned rest after the fingers have closed: real fingers start late and the limiter starts early
PAD_REACH_M = (0.014, 0.016)  # lateral and vertical error within which closing fingers catch the object


@dataclass
class Labels:
    """What the expert says about one state. K tasks."""

    tasks: list[Task]
    chunk: (
        np.ndarray
    )  # (K, ROWS, 7): position [m] and rotation vector [rad] relative to the tool, base axes; opening 0..1
    done: np.ndarray  # (K,) bool
    aux: np.ndarray  # (K, 7): named object - tool, bowl - tool, 1 if there is a bowl


def yaw_of(rotation: np.ndarray) -> float:
    """Yaw of a hand that points down: 0 when its x axis is the base's."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


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


def _approach(error: np.ndarray, fastest: float) -> np.ndarray:
    """Step towards a goal: limited in length, proportional near it. error (K, n)."""
    length = np.linalg.norm(error, axis=-1, keepdims=True)
    return error * np.minimum(APPROACH, fastest * DT_S / np.maximum(length, 1e-9))


def possible_tasks(world: World) -> list[Task]:
    """Every task that makes sense in the present state: an object that lies in a bowl is not to be picked up or
    put elsewhere."""
    held = world.held()
    tasks = []
    for i, item in enumerate(world.items):
        inside = world.in_bowl(i)
        if inside is None or held == i:
            tasks.append(Task("pick", item.colour, item.shape))
        for k, bowl in enumerate(world.bowls):
            if inside is None or inside == k or held == i:
                tasks.append(Task("put", item.colour, item.shape, bowl))
    return tasks


def label(world: World, tasks: list[Task], rows: int = ROWS) -> Labels:
    """Plan every task in `tasks` from the world's present state, `rows` rows ahead."""
    rotation, tool = world.tool_pose()
    _, _, width = world.joints()
    k = len(tasks)
    index = [
        next(i for i, item in enumerate(world.items) if (item.colour, item.shape) == (t.colour, t.shape)) for t in tasks
    ]
    items = [world.items[i] for i in index]
    objects = world.object_positions()[index]  # (K, 3)
    square = np.array([item.shape == "cube" for item in items])
    yaws = world.object_yaws()[index]
    goal_yaw = np.where(square, (yaws + np.pi / 4) % (np.pi / 2) - np.pi / 4, 0.0)
    put = np.array([FAMILIES[t.family].has_target for t in tasks])
    bowls = np.array([world.bowl_positions()[world.bowls.index(t.target)] if t.target else np.zeros(3) for t in tasks])
    held_now = world.held()
    start = np.array([world.start_height(i) for i in index])

    plan = _Rollout(
        tool=np.repeat(tool[None], k, 0),
        yaw=np.full(k, yaw_of(rotation)),
        width=np.full(k, width),
        objects=objects.copy(),
        grip_width=np.array([item.width_m for item in items]),
        goal_yaw=goal_yaw,
        held=np.array([held_now == i for i in index]),
        put=put,
        bowls=bowls,
        rest_height=start,
        other=np.array([held_now not in (None, i) for i in index]),
        put_down_z=np.full(k, 0.0 if held_now is None else tool[2] - world.clearance(held_now)),
        other_width=0.0 if held_now is None else world.items[held_now].width_m,
    )
    done = plan.done()
    chunk = np.zeros((k, rows, 7))
    relative = np.repeat(rotation.T[None], k, 0)
    for row in range(rows):
        opening = plan.step()
        chunk[:, row, :3] = plan.tool - tool
        chunk[:, row, 3:6] = rotation_vector(down(plan.yaw) @ relative)
        chunk[:, row, 6] = opening
    aux = np.concatenate([objects - tool, np.where(put[:, None], bowls - tool, 0.0), put[:, None]], -1)
    return Labels(tasks, chunk, done, aux)


@dataclass
class _Rollout:
    """Kinematic look-ahead of K tasks: no physics, objects stick to closed fingers."""

    tool: np.ndarray
    yaw: np.ndarray
    width: np.ndarray
    objects: np.ndarray
    grip_width: np.ndarray
    goal_yaw: np.ndarray
    held: np.ndarray
    put: np.ndarray
    bowls: np.ndarray
    rest_height: np.ndarray
    other: np.ndarray  # (K,) another object than the named one is in the hand
    put_down_z: np.ndarray  # (K,) tool height at which that object stands on the table
    other_width: float

    def __post_init__(self) -> None:
        self.dwell = np.zeros(len(self.put), dtype=int)  # rows of rest that are left after a grasp in this plan

    def _over_bowl(self) -> np.ndarray:
        return self.put & (np.linalg.norm(self.objects[:, :2] - self.bowls[:, :2], axis=-1) < 0.035)

    def done(self) -> np.ndarray:
        """Fulfilled already: lifted and held, or lying in the bowl with the hand open and away."""
        lifted = self.held & (self.objects[:, 2] - self.rest_height > 0.09)
        in_bowl = (np.linalg.norm(self.objects[:, :2] - self.bowls[:, :2], axis=-1) < scene.BOWL_RIM_RADIUS_M) & (
            self.objects[:, 2] - self.bowls[:, 2] < scene.BOWL_HEIGHT_M + 0.015
        )
        away = (self.width > 0.07) & (self.tool[:, 2] > RETREAT_Z_M - 0.05)
        return np.where(self.put, in_bowl & ~self.held & away, lifted)

    def step(self) -> np.ndarray:
        """Advance one row; returns the commanded opening (K,), 0 closed or 1 open."""
        reach, height = self.objects[:, :2] - self.tool[:, :2], self.tool[:, 2]
        lateral = np.linalg.norm(reach, axis=-1)
        turn = self.goal_yaw - self.yaw
        grasp_z = np.maximum(self.objects[:, 2], 0.014)
        between = (lateral < PAD_REACH_M[0]) & (np.abs(height - self.objects[:, 2]) < PAD_REACH_M[1])
        over = np.linalg.norm(self.bowls[:, :2] - self.tool[:, :2], axis=-1)
        in_bowl = self._over_bowl() & (self.objects[:, 2] - self.bowls[:, 2] < scene.BOWL_HEIGHT_M + 0.05)
        low_over_bowl = self.put & (over < OVER_BOWL_M) & (height < RELEASE_Z_M + 0.012)
        release = low_over_bowl & in_bowl
        placed = self.put & in_bowl & ~self.held

        # 1. free hand: above the object, down a funnel, close
        error = np.maximum(lateral, YAW_ARM_M * np.abs(turn))
        funnel = grasp_z + np.minimum(HOVER_M, FUNNEL_SLOPE * np.maximum(0.0, error - ALIGNED_M))
        opened = self.width > np.minimum(self.grip_width + 0.012, 0.072)
        funnel = np.where(opened | between, funnel, np.maximum(funnel, grasp_z + 0.06))
        at_grasp = (error < ALIGNED_M + 0.002) & (np.abs(height - grasp_z) < GRASP_HEIGHT_M)
        close = (at_grasp | (between & (self.width < OPEN_M - 0.006))) & ~self.held & ~release & ~placed
        goal = np.concatenate([self.objects[:, :2], funnel[:, None]], -1)
        yaw_goal = self.goal_yaw.copy()
        opening = np.where(close, 0.0, 1.0)

        # 2. object in hand: lift, or carry over the bowl and go down
        lift = np.concatenate([self.tool[:, :2], (self.rest_height + LIFT_M)[:, None]], -1)
        bowl_z = np.where(over < OVER_BOWL_M * 0.8, RELEASE_Z_M, TRANSIT_Z_M + 0.03 * np.clip(over / 0.1, 0, 1))
        carry = np.concatenate([self.bowls[:, :2], bowl_z[:, None]], -1)
        goal = np.where(self.held[:, None], np.where(self.put[:, None], carry, lift), goal)
        yaw_goal = np.where(self.held, np.where(self.put, 0.0, self.yaw), yaw_goal)
        opening = np.where(self.held, 0.0, opening)

        # 3. over the bowl and low: let go and wait for the fingers; then up and away
        letting_go = release & (self.width < self.grip_width + 0.02)
        away = np.concatenate([self.tool[:, :2], np.full((len(self.put), 1), RETREAT_Z_M + 0.02)], -1)
        goal = np.where((release | placed)[:, None], np.where(letting_go[:, None], self.tool, away), goal)
        yaw_goal = np.where(release | placed, self.yaw, yaw_goal)
        opening = np.where(release | placed, 1.0, opening)

        # 4. the wrong object in hand: put it down gently before anything else
        lowered = height < self.put_down_z + 0.004
        put_down = np.concatenate([self.tool[:, :2], self.put_down_z[:, None]], -1)
        goal = np.where(self.other[:, None], put_down, goal)
        yaw_goal = np.where(self.other, self.yaw, yaw_goal)
        opening = np.where(self.other, np.where(lowered, 1.0, 0.0), opening)

        # the hand rises before it travels: lateral speed shrinks while it is below the height it should have
        below = np.maximum(goal[:, 2] - height, 0.0)
        free = np.clip(1.2 - below / 0.05, 0.0, 1.0)
        stay = (close & ~self.other) | letting_go | (self.other & lowered) | (self.dwell > 0)
        self.dwell = np.maximum(self.dwell - 1, 0)
        step = np.concatenate(
            [
                _approach(goal[:, :2] - self.tool[:, :2], SPEED_XY_M_S) * free[:, None],
                _approach((goal[:, 2] - height)[:, None], SPEED_Z_M_S),
            ],
            -1,
        )
        step = np.where(stay[:, None], 0.0, step)
        self.tool = self.tool + step
        self.yaw = self.yaw + np.where(
            stay, 0.0, np.clip((yaw_goal - self.yaw) * APPROACH, -SPEED_YAW_RAD_S * DT_S, SPEED_YAW_RAD_S * DT_S)
        )
        self.objects = np.where(self.held[:, None], self.objects + step, self.objects)

        closing = self.width - FINGER_STEP_M
        blocked = ~self.other & between & (closing <= self.grip_width)
        closing = np.where(self.other, self.width, closing)  # fingers are on that object
        shut = np.where(blocked & (self.width >= self.grip_width - 0.003), self.grip_width, np.maximum(closing, 0.0))
        self.width = np.where(opening > 0.5, np.minimum(self.width + FINGER_STEP_M, OPEN_M), shut)
        caught = (opening < 0.5) & between & (self.width <= self.grip_width + 0.001)
        dropped = (opening > 0.5) & self.held & (self.width > self.grip_width + 0.002)
        fallen = dropped & self._over_bowl()
        self.objects[:, 2] = np.where(fallen, self.bowls[:, 2] + 0.03, self.objects[:, 2])
        self.dwell = np.where(caught & ~self.held & ~self.other, DWELL_ROWS, self.dwell)
        self.held = (self.held | (caught & ~self.other)) & ~dropped
        self.other = self.other & (self.width < self.other_width + 0.012)
        return opening
