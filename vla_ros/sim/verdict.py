"""What is true of a scene: which tasks are fulfilled, what was moved that should not have been.

`fulfilled` looks at the present state alone, so that a picture can show it; `outcome` also knows how things began.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_ros.sim import scene
from vla_ros.sim.tasks import DIRECTIONS, Task

if TYPE_CHECKING:
    from vla_ros.sim.world import World

LIFTED_M = 0.08  # "pick": the object's lower end is this far above the table
STACKED_LATERAL_M = 0.016
STACKED_HEIGHT_M = 0.006
AT_REST_M_S = 0.03
BEYOND_M = 0.012  # "push": the object's centre is this far outside the mat
OPEN_M = 0.070  # "drawer"
SHUT_M = 0.012
MOVED_AWAY_M = 0.05  # another object displaced further than this, or lifted, counts as wrong
WRONG_LIFT_M = 0.03
WRONG_DRAWER_M = 0.03
WRONG_WAY_M = 0.04  # "push": displaced this far ...
WRONG_WAY_COS = math.cos(math.radians(45.0))  # ... and further than this from the direction that was named
WRONG_WAY_DRAWER_M = 0.02


@dataclass(frozen=True)
class Outcome:
    """The world's verdict. Privileged: for evaluation and demonstrations, never for a policy."""

    success: bool
    wrong_object: bool
    detail: str
    wrong_direction: bool = False


def in_bowl(world: World, index: int) -> int | None:
    """The bowl that object `index` lies in, if any."""
    position = world.object_positions()[index]
    for k, bowl in enumerate(world.bowl_positions()):
        inside = np.linalg.norm(position[:2] - bowl[:2]) < scene.BOWL_RIM_RADIUS_M
        if inside and position[2] - bowl[2] < scene.BOWL_HEIGHT_M + 0.015:
            return k
    return None


def on_tray(world: World, index: int) -> bool:
    """Whether the object's centre is above the tray's floor and its lower end near it."""
    offset = world.object_positions()[index] - world.tray_position()
    hx, hy, hz = scene.TRAY_HALF_M
    low = offset[2] - world.items[index].half_height_m < 2 * hz + 0.012
    return bool(abs(offset[0]) < hx and abs(offset[1]) < hy and low)


def on_top(world: World, above: int, below: int) -> bool:
    """Whether one object rests on another: over its middle, at the right height, still."""
    positions = world.object_positions()
    offset = positions[above] - positions[below]
    height = world.items[above].half_height_m + world.items[below].half_height_m
    return bool(
        np.linalg.norm(offset[:2]) < STACKED_LATERAL_M
        and abs(offset[2] - height) < STACKED_HEIGHT_M
        and world.object_speeds()[above] < AT_REST_M_S
    )


def beyond_mat(position: np.ndarray, direction: str) -> float:
    """How far a point is outside the mat on the named side [m]; negative inside."""
    dx, dy = DIRECTIONS[direction]
    edges = [x for x in scene.MAT_X_M if dx * (x - sum(scene.MAT_X_M) / 2) > 0] or [
        y for y in scene.MAT_Y_M if dy * (y - sum(scene.MAT_Y_M) / 2) > 0
    ]
    return float((dx + dy) * ((position[0] if dx else position[1]) - edges[0]))


def _pick(world: World, task: Task) -> bool:
    named = world.index(task.pair)
    return world.held() == named and world.clearance(named) > LIFTED_M


def _put(world: World, task: Task) -> bool:
    named = world.index(task.pair)
    if world.held() == named:
        return False
    if task.target == "tray":
        return on_tray(world, named)
    inside = in_bowl(world, named)
    return inside is not None and world.bowls[inside] == task.target


def _stack(world: World, task: Task) -> bool:
    named = world.index(task.pair)
    return world.held() != named and on_top(world, named, world.index(task.base))


def _push(world: World, task: Task) -> bool:
    named = world.index(task.pair)
    position = world.object_positions()[named]
    return (
        world.held() != named and world.clearance(named) < 0.015 and beyond_mat(position, str(task.target)) > BEYOND_M
    )


def _press(world: World, task: Task) -> bool:
    return world.lit


def _drawer(world: World, task: Task) -> bool:
    opening = world.drawer_opening()
    return opening > OPEN_M if task.target == "open" else opening < SHUT_M


FULFILLED: dict[str, Callable[[World, Task], bool]] = {
    "pick": _pick,
    "put": _put,
    "stack": _stack,
    "push": _push,
    "press": _press,
    "drawer": _drawer,
}


def fulfilled(world: World, task: Task) -> bool:
    """Whether the present state is what the task asks for."""
    return FULFILLED[task.family](world, task)


def _wrongly_moved(world: World) -> str | None:
    """What was moved that the world's task does not name."""
    start, task = world.start, world.task
    shift = world.object_positions() - start.objects
    for i, item in enumerate(world.items):
        if (item.colour, item.shape) in task.pairs:
            continue
        if np.linalg.norm(shift[i, :2]) > MOVED_AWAY_M or shift[i, 2] > WRONG_LIFT_M:
            return f"{item.colour} {item.shape}"
    if task.family != "drawer" and abs(world.drawer_opening() - start.drawer_opening_m) > WRONG_DRAWER_M:
        return "drawer"
    if task.family != "press" and world.lit and not start.lit:
        return "button"
    return None


def _wrong_way(world: World) -> bool:
    task = world.task
    if task.family == "push":
        shift = (world.object_positions() - world.start.objects)[world.index(task.pair), :2]
        length = float(np.linalg.norm(shift))
        return length > WRONG_WAY_M and float(shift @ DIRECTIONS[str(task.target)]) < length * WRONG_WAY_COS
    if task.family == "drawer":
        opened = world.drawer_opening() - world.start.drawer_opening_m
        return (opened if task.target == "close" else -opened) > WRONG_WAY_DRAWER_M
    return False


def outcome(world: World) -> Outcome:
    """Judged from the physics state at this instant and from how things began."""
    task, wrong, wrong_way = world.task, _wrongly_moved(world), _wrong_way(world)
    if task.pair is not None:
        named = world.index(task.pair)
        shift = world.object_positions()[named] - world.start.objects[named]
        detail = (
            f"the {task.colour} {task.shape} is {shift[2] * 100:.1f} cm above and "
            f"{np.linalg.norm(shift[:2]) * 100:.1f} cm beside its start"
        )
    elif task.family == "drawer":
        detail = f"the drawer is {world.drawer_opening() * 100:.1f} cm open"
    else:
        detail = f"the button's lamp is {'on' if world.lit else 'off'}"
    if wrong is not None:
        detail += f"; the {wrong} was moved"
    if wrong_way:
        detail += "; it went the wrong way"
    return Outcome(fulfilled(world, task) and not wrong_way, wrong is not None, detail, wrong_way)
