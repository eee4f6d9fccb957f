"""Which sentences make sense in a scene, which of them may be taught, and which contrast with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vla_ros.sim import scene, verdict
from vla_ros.sim.tasks import DIRECTIONS, FAMILIES, HELD_OUT_PAIRS, HELD_OUT_REGIONS_M, Task

if TYPE_CHECKING:
    from vla_ros.sim.world import World

PUSH_M = (0.055, 0.22)  # shortest and longest way out of the mat
PUSH_PAST_M = 0.028  # the expert leaves an object this far outside
PUSH_ROOM_M = 0.034  # free beside the way of an object's centre
HAND_BEHIND_M = 0.060  # where closed fingers come down, behind the object's centre
HAND_ROOM_M = 0.018
HANDLE_ROOM_M = 0.040
SPOT_ROOM_M = 0.040
SPOTS_M = [np.array([x, y]) for x in np.arange(0.42, 0.62, 0.04) for y in np.arange(-0.16, 0.17, 0.04)]
STEPS = np.linspace(0.0, 1.0, 9)  # along a way that has to be free
REACH_M = ((0.37, 0.67), (-0.20, 0.20))  # where a push may end


def _obstacles(world: World, without: int | None) -> np.ndarray:
    """(n, 4): middle x, y and half sizes of what stands on the table."""
    found = [[*xyz[:2], 0.024, 0.024] for i, xyz in enumerate(world.object_positions()) if i != without]
    rim = scene.BOWL_RIM_RADIUS_M
    found += [[*xyz[:2], rim, rim] for xyz in world.bowl_positions()]
    found.append([*world.tray_position()[:2], *scene.TRAY_HALF_M[:2]])
    found.append([*world.cap_position()[:2], *scene.BUTTON_HALF_M[:2]])
    handle = world.handle_position()
    depth = world.drawer_opening() + 2 * scene.CABINET_HALF_M[0] - scene.HANDLE_X_M
    found.append([handle[0] + depth / 2, handle[1], depth / 2, scene.CABINET_HALF_M[1]])
    return np.array(found)


def _clear(obstacles: np.ndarray, start: np.ndarray, end: np.ndarray, room: float) -> bool:
    """Whether the way from start to end (x, y) keeps `room` from every obstacle."""
    points = start + STEPS[:, None] * (end - start)  # (9, 2)
    gap = np.maximum(np.abs(points[:, None] - obstacles[:, :2]) - obstacles[:, 2:], 0.0)  # (9, n, 2)
    return bool((np.linalg.norm(gap, axis=-1) > room).all())


def push_way(position: np.ndarray, direction: str) -> float:
    """How far an object has to be pushed [m]."""
    return PUSH_PAST_M - verdict.beyond_mat(position, direction)


def _can_push(world: World, index: int, direction: str) -> bool:
    position, d = world.object_positions()[index], np.array(DIRECTIONS[direction])
    way = push_way(position, direction)
    end = position[:2] + d * way
    reachable = all(lo <= x <= hi for x, (lo, hi) in zip(end, REACH_M, strict=True))
    if not (PUSH_M[0] <= way <= PUSH_M[1] and reachable and world.upright(index)):
        return False
    obstacles = _obstacles(world, index)
    behind = position[:2] - d * HAND_BEHIND_M
    return _clear(obstacles, position[:2], end, PUSH_ROOM_M) and _clear(obstacles, behind, behind, HAND_ROOM_M)


def free_spot(world: World, held: int, near: np.ndarray) -> tuple[float, float]:
    """The nearest place (x, y) where the object in the hand can be put down."""
    obstacles = _obstacles(world, held)
    found = [p for p in (near, *SPOTS_M) if _clear(obstacles, p, p, SPOT_ROOM_M)] or [near]
    best = min(found, key=lambda p: float(np.linalg.norm(p - near)))
    return float(best[0]), float(best[1])


def _about_objects(world: World, family: str) -> list[Task]:
    """Tasks that name an object: one that another lies on, or that lies in a bowl, is not to be moved elsewhere."""
    held, tasks = world.held(), []
    count = range(len(world.items))
    covered = {b for b in count for a in count if a != b and held != a and world.lies_on(a, b)}
    for i, item in enumerate(world.items):
        if item.shape not in FAMILIES[family].shapes or i in covered:
            continue
        inside = None if held == i else verdict.in_bowl(world, i)
        pair = (item.colour, item.shape)
        if family == "put":
            tasks += [Task("put", *pair, bowl) for k, bowl in enumerate(world.bowls) if inside in (None, k)]
            tasks += [Task("put", *pair, "tray")] if inside is None else []
        elif inside is not None:
            continue
        elif family == "pick":
            tasks.append(Task("pick", *pair))
        elif family == "stack":
            for b, base in enumerate(world.items):
                busy = b in (i, held, *covered) and not world.lies_on(i, b)
                if (
                    not busy
                    and world.upright(b)
                    and base.shape in FAMILIES["stack"].shapes
                    and verdict.in_bowl(world, b) is None
                ):
                    tasks.append(Task("stack", *pair, f"{base.colour} {base.shape}"))
        elif family == "push" and held != i and world.clearance(i) < 0.005:
            for direction in DIRECTIONS:
                task = Task("push", *pair, direction)
                if verdict.fulfilled(world, task) or _can_push(world, i, direction):
                    tasks.append(task)
    return tasks


def _drawer(world: World, family: str) -> list[Task]:
    handle = world.handle_position()[:2]
    out = handle + [world.drawer_opening() - scene.DRAWER_TRAVEL_M, 0.0]
    objects = _obstacles(world, None)[: len(world.items)]
    free = _clear(objects, handle, out, HANDLE_ROOM_M)
    return [Task("drawer", target=t) for t in ("open", "close") if free or t == "close"]


_POSSIBLE: dict[str, Callable[[World, str], list[Task]]] = {
    **{family.name: _about_objects for family in FAMILIES.values() if family.shapes},
    "press": lambda world, family: [Task("press")],
    "drawer": _drawer,
}


def possible_tasks(world: World, family: str | None = None) -> list[Task]:
    """Every task that makes sense in the present state, also one that is fulfilled already."""
    return [task for name in ([family] if family else FAMILIES) for task in _POSSIBLE[name](world, name)]


def open_tasks(world: World, family: str | None = None) -> list[Task]:
    """Every task that makes sense and is still to be done."""
    return [task for task in possible_tasks(world, family) if not verdict.fulfilled(world, task)]


def with_trained_pairs(world: World, task: Task) -> bool:
    """Names nothing that was held out."""
    return not any(pair in HELD_OUT_PAIRS for pair in task.pairs)


def with_heldout_pair(world: World, task: Task) -> bool:
    """What is to be moved was held out, what else is named was not."""
    return task.pair in HELD_OUT_PAIRS and task.base not in HELD_OUT_PAIRS


def _in_heldout_region(world: World, pair: tuple[str, str]) -> bool:
    """Whether this object lies in one of the regions; what is in the hand lies nowhere."""
    index = world.index(pair)
    x, y, _ = world.object_positions()[index]
    lying = world.held() != index
    return lying and any(x0 <= x <= x1 and y0 <= y <= y1 for x0, x1, y0, y1 in HELD_OUT_REGIONS_M)


def in_heldout_region(world: World, task: Task) -> bool:
    """What is to be moved lies where nothing named ever lay in a demonstration."""
    return task.pair is not None and _in_heldout_region(world, task.pair)


def outside_heldout_regions(world: World, task: Task) -> bool:
    """Nothing that is named lies there."""
    return not any(_in_heldout_region(world, pair) for pair in task.pairs)


def teachable(world: World, task: Task) -> bool:
    """May stand in a demonstration: no held-out pair, and what it names does not lie in a held-out region."""
    return with_trained_pairs(world, task) and outside_heldout_regions(world, task)


def contrasting(world: World, task: Task) -> list[Task]:
    """What else could be asked here that differs in one word: another object, or another destination or direction.
    For a task that has no such neighbour: whatever else can be done."""
    others = [t for t in open_tasks(world) if t != task and with_trained_pairs(world, t)]
    near = [t for t in others if t.family == task.family and (t.pair == task.pair) != (t.target == task.target)]
    if task.family == "pick":
        near = [t for t in others if t.family == "pick"]
    elif task.family == "drawer":
        near = [t for t in others if t.family == "drawer"]
    return near or [t for t in others if t.family != task.family]
