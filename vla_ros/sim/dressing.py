"""Draws scenes: what is on the table, how it looks, where it lies. Writes into a compiled model; no physics steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_ros.sim import scene
from vla_ros.sim.tasks import COLOURS, PAIRS, Task

OBJECT_AREA_M = ((0.42, 0.62), (-0.17, 0.17))
BOWL_AREA_M = ((0.42, 0.60), (0.26, 0.33))  # y is mirrored for the second bowl
TRAY_AREA_M = ((0.315, 0.325), (-0.12, 0.12))
DRAWER_FACE_M = ((0.735, 0.747), (0.03, 0.08))  # y on one side, the button on the other
BUTTON_AREA_M = ((0.66, 0.70), (0.12, 0.165))
OBJECT_SPACING_M = 0.095  # between centres: the open hand must fit around one without touching the next
BOWL_SPACING_M = 0.125
BUTTON_SPACING_M = 0.085
SWEEP_ROOM_M = (0.050, 0.115)  # ahead of the open drawer's handle and beside its middle: no object starts there
DRAWER_STARTS_M = ((0.0, 0.0), (0.025, 0.055), (0.072, 0.088))  # shut, ajar, open
DRAWER_CHANCES = (0.40, 0.25, 0.35)
LIT_CHANCE = 0.25
SIZES_M = {"cube": (0.020, 0.020), "cylinder": (0.020, 0.026), "ball": (0.022, 0.022)}  # radius, half height


@dataclass(frozen=True)
class Item:
    """One object on the table. Size is (half width) for a cube, (radius, half height) or (radius)."""

    colour: str
    shape: str
    radius_m: float
    half_height_m: float

    @property
    def width_m(self) -> float:
        """What the fingers span when they hold it."""
        return 2 * self.radius_m


@dataclass(frozen=True)
class Layout:
    """Where a scene's things start. Positions (x, y) [m] of the base frame."""

    objects: list[np.ndarray]
    bowls: list[np.ndarray]
    tray: np.ndarray
    drawer_face: np.ndarray
    button: np.ndarray
    drawer_opening_m: float
    lit: bool


def _draw(rng: np.random.Generator, n: int, count: int, wanted: list[int]) -> list[int]:
    """`count` different numbers below n, in random order, `wanted` among them."""
    drawn = [int(k) for k in rng.permutation(n)[:count]]
    free = [slot for slot, k in enumerate(drawn) if k not in wanted]
    for k in wanted:
        if k not in drawn:
            drawn[free.pop(int(rng.integers(len(free))))] = k
    return drawn


def shade(colour: str, rng: np.random.Generator) -> np.ndarray:
    """One of the tones that go by a colour's name."""
    return np.clip(np.array(COLOURS[colour]) * rng.uniform(0.80, 1.15) + rng.uniform(-0.03, 0.03, 3), 0, 1)


def draw_items(
    rng: np.random.Generator, task: Task | None, pairs: Sequence[tuple[str, str]] = PAIRS
) -> tuple[Item, ...]:
    """Different objects of these pairs of colour and shape, and those that `task` names."""
    kinds = list(pairs) if task is None else [*pairs, *(pair for pair in task.pairs if pair not in pairs)]
    wanted = [] if task is None else [kinds.index(pair) for pair in task.pairs]
    items = []
    for k in _draw(rng, len(kinds), scene.OBJECT_COUNT, wanted):
        colour, shape = kinds[k]
        radius, half = SIZES_M[shape]
        scale = rng.uniform(0.92, 1.08)
        items.append(Item(colour, shape, radius * scale, half * scale))
    return tuple(items)


def draw_bowls(rng: np.random.Generator, task: Task | None) -> tuple[str, ...]:
    """Colours of the bowls."""
    colours = list(COLOURS)
    named = task is not None and task.family == "put" and task.target in colours
    wanted = [colours.index(str(task.target))] if task is not None and named else []
    return tuple(colours[k] for k in _draw(rng, len(colours), scene.BOWL_COUNT, wanted))


def draw_layout(rng: np.random.Generator, bowls: int, items: int) -> Layout:
    """Bowls left and right, tray near the base, drawer and button at the far end, objects between; room for the open
    hand around each."""
    sides = [-1.0, 1.0] if rng.random() < 0.5 else [1.0, -1.0]
    bowl_xy = [np.array([rng.uniform(*BOWL_AREA_M[0]), s * rng.uniform(*BOWL_AREA_M[1])]) for s in sides[:bowls]]
    tray = np.array([rng.uniform(*TRAY_AREA_M[0]), rng.uniform(*TRAY_AREA_M[1])])
    side = 1.0 if rng.random() < 0.5 else -1.0
    face = np.array([rng.uniform(*DRAWER_FACE_M[0]), side * rng.uniform(*DRAWER_FACE_M[1])])
    button = np.array([rng.uniform(*BUTTON_AREA_M[0]), -side * rng.uniform(*BUTTON_AREA_M[1])])
    opening = rng.uniform(*DRAWER_STARTS_M[int(rng.choice(len(DRAWER_STARTS_M), p=DRAWER_CHANCES))])
    lit = bool(rng.random() < LIT_CHANCE)
    sweep_x = face[0] + scene.HANDLE_X_M - scene.DRAWER_TRAVEL_M - SWEEP_ROOM_M[0]
    fixed = [*((xy, BOWL_SPACING_M) for xy in bowl_xy), (button, BUTTON_SPACING_M)]
    objects: list[np.ndarray] = []
    while len(objects) < items:
        xy = np.array([rng.uniform(*OBJECT_AREA_M[0]), rng.uniform(*OBJECT_AREA_M[1])])
        in_sweep = xy[0] > sweep_x and abs(xy[1] - face[1]) < SWEEP_ROOM_M[1]
        near = any(np.linalg.norm(xy - o) <= room for o, room in [*fixed, *((o, OBJECT_SPACING_M) for o in objects)])
        if not in_sweep and not near:
            objects.append(xy)
        elif rng.random() < 0.002:  # a crowded draw: start over rather than search for ever
            objects.clear()
    return Layout(objects, bowl_xy, tray, face, button, float(opening), lit)


def shape_object(model: mujoco.MjModel, body: int, geom: int, item: Item, rgb: np.ndarray) -> None:
    """Give one of the model's objects an item's shape, size, inertia and colour."""
    r, h = item.radius_m, item.half_height_m
    kind, size, reach = {
        "cube": (mujoco.mjtGeom.mjGEOM_BOX, (r, r, h), math.sqrt(2 * r * r + h * h)),
        "cylinder": (mujoco.mjtGeom.mjGEOM_CYLINDER, (r, h, 0), math.hypot(r, h)),
        "ball": (mujoco.mjtGeom.mjGEOM_SPHERE, (r, 0, 0), r),
    }[item.shape]
    model.geom_type[geom], model.geom_size[geom], model.geom_rbound[geom] = kind, size, reach
    model.geom_aabb[geom] = [0, 0, 0, r, r, h]
    mass = model.body_mass[body]
    model.body_inertia[body] = {
        "cube": (mass * (r * r + h * h) / 3, mass * (r * r + h * h) / 3, mass * 2 * r * r / 3),
        "cylinder": (mass * (3 * r * r + 4 * h * h) / 12,) * 2 + (mass * r * r / 2,),
        "ball": (0.4 * mass * r * r,) * 3,
    }[item.shape]
    model.geom_rgba[geom, :3] = rgb


def light_and_cameras(
    model: mujoco.MjModel, rest: dict[str, tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> None:
    """Table, mat and light in other tones; cameras off their rest poses `rest` by a little."""
    table = np.array([0.60, 0.52, 0.43]) if rng.random() < 0.5 else np.array([0.55, 0.56, 0.58])
    table = np.clip(table * rng.uniform(0.75, 1.25) + rng.uniform(-0.04, 0.04, 3), 0, 1)
    model.geom_rgba[model.geom("table").id, :3] = table
    model.geom_rgba[model.geom("mat").id, :3] = np.clip(table * rng.uniform(0.50, 0.62), 0, 1)
    model.light_pos[0] = [0.6, -0.4, 1.6] + rng.uniform(-0.4, 0.4, 3)
    model.light_diffuse[0] = rng.uniform(0.40, 0.65)
    model.vis.headlight.ambient[:] = rng.uniform(0.28, 0.42)
    for name, (position, quat) in rest.items():
        spread = 0.012 if name == "scene" else 0.002  # a clamp that was bumped; a bracket with play
        camera = model.camera(name).id
        model.cam_pos[camera] = position + rng.uniform(-spread, spread, 3)
        turn = np.concatenate([[1.0], 0.5 * rng.uniform(-0.012, 0.012, 3)])
        mujoco.mju_mulQuat(model.cam_quat[camera], quat, turn / np.linalg.norm(turn))
