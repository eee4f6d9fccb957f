"""The table-top world: physics, cameras, the arm's joint servo, and the truth about what happened.

Deterministic: the same seed and the same commands give the same states. One thread at a time may use a World; the
renderer's GL context belongs to the thread that renders first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.sim import scene
from vla_ros.sim.tasks import COLOURS, FAMILIES, SHAPES, Task, sentence

SERVO_STIFFNESS = 1600.0  # 1/s^2, computed-torque gains: natural frequency 40 rad/s, critically damped
SERVO_DAMPING = 80.0  # 1/s
EXTRAPOLATE_S = 0.02  # a setpoint's velocity is followed this long; then the servo holds (two control periods)
FINGER_STIFFNESS_N_M = 2000.0
FINGER_DAMPING_N_S_M = 60.0

OBJECT_AREA_M = ((0.39, 0.62), (-0.17, 0.17))
BOWL_AREA_M = ((0.42, 0.60), (0.26, 0.33))  # y is mirrored for the second bowl
OBJECT_SPACING_M = 0.095  # between centres: the open hand must fit around one without touching the next
BOWL_SPACING_M = 0.125
LIFTED_M = 0.08  # success of "pick": the object's centre is this far above where it started
MOVED_AWAY_M = 0.05  # another object displaced further than this, or lifted, counts as wrong
WRONG_LIFT_M = 0.03


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
class Outcome:
    """The world's verdict. Privileged: for evaluation and demonstrations, never for a policy."""

    success: bool
    wrong_object: bool
    detail: str


def _draw(rng: np.random.Generator, n: int, count: int, wanted: int | None) -> list[int]:
    """`count` different numbers below n, in random order, `wanted` among them."""
    drawn = [int(k) for k in rng.permutation(n)[:count]]
    if wanted is not None and wanted not in drawn:
        drawn[int(rng.integers(count))] = wanted
    return drawn


class World:
    """Table-top with the contract's arm. Lengths in metres, base frame; quaternions (w, x, y, z)."""

    def __init__(self, contract: Contract, seed: int = 0, render: bool = True, family: str | None = None) -> None:
        self._contract = contract
        self.model = scene.build(contract)
        self.data = mujoco.MjData(self.model)
        self._renderer = mujoco.Renderer(self.model, scene.CAMERA_PX, scene.CAMERA_PX) if render else None
        if self._renderer is not None:
            for flag in (
                mujoco.mjtRndFlag.mjRND_SHADOW,
                mujoco.mjtRndFlag.mjRND_REFLECTION,
                mujoco.mjtRndFlag.mjRND_SKYBOX,
            ):
                self._renderer.scene.flags[flag] = False
        joints = [self.model.joint(name) for name in contract.joint_names]
        self._q_index = np.array([j.qposadr[0] for j in joints])
        self._v_index = np.array([j.dofadr[0] for j in joints])
        fingers = [j for j in range(self.model.njnt) if self.model.jnt_type[j] == mujoco.mjtJoint.mjJNT_SLIDE]
        self._finger_q = self.model.jnt_qposadr[fingers]
        self._finger_v = self.model.jnt_dofadr[fingers]
        self._effort = np.array([87.0] * 4 + [12.0] * 3)[: contract.n_joints]  # Nm, Panda datasheet
        self._object_body = [self.model.body(f"object{i}").id for i in range(scene.OBJECT_COUNT)]
        self._object_geom = [self.model.geom(f"object{i}").id for i in range(scene.OBJECT_COUNT)]
        self._object_q = [int(self.model.jnt_qposadr[self.model.body_jntadr[b]]) for b in self._object_body]
        self._bowl_body = [self.model.body(f"bowl{i}").id for i in range(scene.BOWL_COUNT)]
        self._bowl_q = [int(self.model.jnt_qposadr[self.model.body_jntadr[b]]) for b in self._bowl_body]
        self._bowl_geoms = [np.flatnonzero(self.model.geom_bodyid == b) for b in self._bowl_body]
        self._tool = self.model.body(contract.tool_frame).id
        self._fingers = {b for b in range(self.model.nbody) if "finger" in self.model.body(b).name}
        self._camera_rest = {
            name: (self.model.camera(name).pos.copy(), self.model.camera(name).quat.copy())
            for name in ("scene", "wrist")
        }
        self.reset(seed, family)

    # ---------------------------------------------------------------- episodes

    def reset(self, seed: int | tuple[int, ...], family: str | None = None, task: Task | None = None) -> None:
        """A new scene and a new task, functions of the arguments alone. With `task` the scene holds what it names.

        Evaluation seeds are integers; demonstrations use tuples, so that the two can never share a scene."""
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        self._dress(rng, task)
        self._place(rng)
        chosen = task.family if task else family or list(FAMILIES)[int(rng.integers(len(FAMILIES)))]
        if chosen not in FAMILIES:
            raise ValueError(f"family {chosen!r} is not one of {', '.join(FAMILIES)}")
        if task is None:
            item = self.items[int(rng.integers(len(self.items)))]
            target = self.bowls[int(rng.integers(len(self.bowls)))] if FAMILIES[chosen].has_target else None
            task = Task(chosen, item.colour, item.shape, target)
        self.set_task(task)
        self.instruction = sentence(task.family, task.colour, task.shape, task.target, rng)
        q = np.asarray(self._contract.poses.ready_rad, dtype=float)
        self.teleport(q + rng.uniform(-0.03, 0.03, q.shape), self._contract.gripper.open_m)
        self.settle()

    def set_task(self, task: Task) -> None:
        """What `outcome` judges from now on."""
        self.task = task
        self.named = next(
            i for i, item in enumerate(self.items) if (item.colour, item.shape) == (task.colour, task.shape)
        )
        self.destination = None if task.target is None else self.bowls.index(task.target)

    def _dress(self, rng: np.random.Generator, task: Task | None) -> None:
        """Shapes, sizes, colours, light and camera poses."""
        m = self.model
        kinds = [(c, s) for c in COLOURS for s in SHAPES]
        items = []
        wanted = None if task is None else kinds.index((task.colour, task.shape))
        for slot, k in enumerate(_draw(rng, len(kinds), scene.OBJECT_COUNT, wanted)):
            colour, shape = kinds[k]
            scale = rng.uniform(0.92, 1.08)
            radius, half = {"cube": (0.020, 0.020), "cylinder": (0.020, 0.026), "ball": (0.022, 0.022)}[shape]
            item = Item(colour, shape, radius * scale, half * scale)
            items.append(item)
            geom, body = self._object_geom[slot], self._object_body[slot]
            r, h = item.radius_m, item.half_height_m
            kind, size, reach = {
                "cube": (mujoco.mjtGeom.mjGEOM_BOX, (r, r, h), math.sqrt(2 * r * r + h * h)),
                "cylinder": (mujoco.mjtGeom.mjGEOM_CYLINDER, (r, h, 0), math.hypot(r, h)),
                "ball": (mujoco.mjtGeom.mjGEOM_SPHERE, (r, 0, 0), r),
            }[shape]
            m.geom_type[geom], m.geom_size[geom], m.geom_rbound[geom] = kind, size, reach
            m.geom_aabb[geom] = [0, 0, 0, r, r, h]
            mass = m.body_mass[body]
            m.body_inertia[body] = {
                "cube": (mass * (r * r + h * h) / 3, mass * (r * r + h * h) / 3, mass * 2 * r * r / 3),
                "cylinder": (mass * (3 * r * r + 4 * h * h) / 12,) * 2 + (mass * r * r / 2,),
                "ball": (0.4 * mass * r * r,) * 3,
            }[shape]
            m.geom_rgba[geom, :3] = self._shade(colour, rng)
        self.items = tuple(items)
        wanted = None if task is None or task.target is None else list(COLOURS).index(task.target)
        bowls = [list(COLOURS)[k] for k in _draw(rng, len(COLOURS), scene.BOWL_COUNT, wanted)]
        self.bowls = tuple(bowls)
        for geoms, colour in zip(self._bowl_geoms, bowls, strict=True):
            m.geom_rgba[geoms, :3] = self._shade(colour, rng)
        table = np.array([0.60, 0.52, 0.43]) if rng.random() < 0.5 else np.array([0.55, 0.56, 0.58])
        m.geom_rgba[m.geom("table").id, :3] = np.clip(
            table * rng.uniform(0.75, 1.25) + rng.uniform(-0.04, 0.04, 3), 0, 1
        )
        m.light_pos[0] = [0.6, -0.4, 1.6] + rng.uniform(-0.4, 0.4, 3)
        m.light_diffuse[0] = rng.uniform(0.40, 0.65)
        m.vis.headlight.ambient[:] = rng.uniform(0.28, 0.42)
        for name in ("scene", "wrist"):
            position, quat = self._camera_rest[name]
            spread = 0.012 if name == "scene" else 0.002  # a clamp that was bumped; a bracket with play
            camera = m.camera(name)
            m.cam_pos[camera.id] = position + rng.uniform(-spread, spread, 3)
            turn = np.concatenate([[1.0], 0.5 * rng.uniform(-0.012, 0.012, 3)])
            mujoco.mju_mulQuat(m.cam_quat[camera.id], quat, turn / np.linalg.norm(turn))
        mujoco.mj_setConst(m, self.data)

    @staticmethod
    def _shade(colour: str, rng: np.random.Generator) -> np.ndarray:
        return np.clip(np.array(COLOURS[colour]) * rng.uniform(0.80, 1.15) + rng.uniform(-0.03, 0.03, 3), 0, 1)

    def _place(self, rng: np.random.Generator) -> None:
        """Bowls left and right, tray near the base, objects between with room for the open hand around each."""
        sides = [-1.0, 1.0] if rng.random() < 0.5 else [1.0, -1.0]
        taken: list[tuple[np.ndarray, float]] = []
        for slot, side in enumerate(sides):
            xy = np.array([rng.uniform(*BOWL_AREA_M[0]), side * rng.uniform(*BOWL_AREA_M[1])])
            taken.append((xy, BOWL_SPACING_M))
            self._pose(self._bowl_q[slot], [*xy, 0.0], rng.uniform(-math.pi, math.pi))
        self.model.body_pos[self.model.body("tray").id] = [rng.uniform(0.25, 0.28), rng.uniform(-0.12, 0.12), 0.0]
        placed = 0
        while placed < len(self.items):
            xy = np.array([rng.uniform(*OBJECT_AREA_M[0]), rng.uniform(*OBJECT_AREA_M[1])])
            if all(np.linalg.norm(xy - other) > room for other, room in taken):
                half = self.items[placed].half_height_m
                self._pose(self._object_q[placed], [*xy, half + 0.001], rng.uniform(-math.pi, math.pi))
                taken.append((xy, OBJECT_SPACING_M))
                placed += 1
            elif rng.random() < 0.002:  # a crowded draw: start over rather than search for ever
                del taken[len(self.bowls) :]
                placed = 0

    def _pose(self, index: int, position: list[float], yaw: float) -> None:
        self.data.qpos[index : index + 7] = [*position, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]

    def teleport(self, q: np.ndarray, width_m: float) -> None:
        """Put the arm somewhere at rest: starts of episodes only."""
        lo, hi = self._contract.limits.q_lo_rad, self._contract.limits.q_hi_rad
        q = np.clip(q, lo, hi)
        self.data.qpos[self._q_index] = q
        self.data.qvel[self._v_index] = 0.0
        self.data.qpos[self._finger_q] = width_m / 2
        self.data.qvel[self._finger_v] = 0.0
        self._width_target = self._width_ramp = width_m
        self.command(q, np.zeros_like(q))
        mujoco.mj_forward(self.model, self.data)

    def settle(self) -> None:
        """Let things come to rest, then remember where they are: displacement is measured from here."""
        self.step(150)
        self.data.time = 0.0
        self._commanded_at = 0.0
        self._start = self.object_positions()

    # ---------------------------------------------------------------- arm

    def command(self, q_rad: np.ndarray, qd_rad_s: np.ndarray) -> None:
        """Joint setpoint and velocity feed-forward of the servo, contract order."""
        self._q_command = np.array(q_rad, dtype=float)
        self._qd_command = np.array(qd_rad_s, dtype=float)
        self._commanded_at = self.data.time

    def grip(self, width_m: float) -> None:
        """Wanted opening between the fingers; approached at the contract's speed with the contract's force."""
        lo, hi = self._contract.gripper.closed_m, self._contract.gripper.open_m
        self._width_target = min(max(float(width_m), lo), hi)

    def step(self, n: int = 1) -> None:
        """Advance n steps of 2 ms."""
        m, d = self.model, self.data
        gripper = self._contract.gripper
        ramp = gripper.speed_m_s * scene.TIMESTEP_S
        torque = np.zeros(m.nv)
        acceleration = np.zeros(m.nv)
        for _ in range(n):
            age = d.time - self._commanded_at
            moving = 1.0 if age < EXTRAPOLATE_S else 0.0
            q_wanted = self._q_command + self._qd_command * min(age, EXTRAPOLATE_S)
            # computed torque: the arm follows its setpoint within milliseconds, as an industrial servo does
            acceleration[self._v_index] = SERVO_STIFFNESS * (q_wanted - d.qpos[self._q_index]) + SERVO_DAMPING * (
                moving * self._qd_command - d.qvel[self._v_index]
            )
            mujoco.mj_mulM(m, d, torque, acceleration)
            arm = torque[self._v_index] + d.qfrc_bias[self._v_index]
            d.qfrc_applied[self._v_index] = np.clip(arm, -self._effort, self._effort)
            self._width_ramp += min(max(self._width_target - self._width_ramp, -ramp), ramp)
            force = (
                FINGER_STIFFNESS_N_M * (self._width_ramp / 2 - d.qpos[self._finger_q])
                - FINGER_DAMPING_N_S_M * d.qvel[self._finger_v]
            )
            limit = gripper.force_n / 2
            d.qfrc_applied[self._finger_v] = np.clip(force, -limit, limit) + d.qfrc_bias[self._finger_v]
            mujoco.mj_step(m, d)

    def joints(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Measured joint positions (rad), velocities (rad/s), gripper opening (m)."""
        d = self.data
        return d.qpos[self._q_index].copy(), d.qvel[self._v_index].copy(), float(d.qpos[self._finger_q].sum())

    def snapshot(self, into: mujoco.MjData | None = None) -> mujoco.MjData:
        """Copy of the physics state, which another thread may render while this one steps on."""
        copy = mujoco.MjData(self.model) if into is None else into
        mujoco.mj_copyData(copy, self.model, self.data)
        return copy

    def render(self, camera: str, snapshot: mujoco.MjData | None = None) -> np.ndarray:
        """(224, 224, 3) uint8 rgb, of a snapshot where one is given."""
        if self._renderer is None:
            raise RuntimeError("this World was made with render=False")
        self._renderer.update_scene(self.data if snapshot is None else snapshot, camera=camera)
        return self._renderer.render()

    @property
    def time_s(self) -> float:
        return float(self.data.time)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # ---------------------------------------------------------------- truth (privileged)

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """T_base_tool as rotation (3, 3) and position (3,)."""
        return self.data.xmat[self._tool].reshape(3, 3).copy(), self.data.xpos[self._tool].copy()

    def object_positions(self) -> np.ndarray:
        """(objects, 3) centres."""
        return self.data.xpos[self._object_body].copy()

    def object_yaws(self) -> np.ndarray:
        """(objects,) rad, rotation about the vertical."""
        mats = self.data.xmat[self._object_body].reshape(-1, 3, 3)
        return np.arctan2(mats[:, 1, 0], mats[:, 0, 0])

    def bowl_positions(self) -> np.ndarray:
        """(bowls, 3) centres of the bowls' floors."""
        return self.data.xpos[self._bowl_body].copy()

    def start_height(self, index: int) -> float:
        """Height of an object's centre when the episode began [m]."""
        return float(self._start[index, 2])

    def clearance(self, index: int) -> float:
        """Gap between an object's lower end and the table [m], for an upright object."""
        return float(self.data.xpos[self._object_body[index], 2]) - self.items[index].half_height_m

    def in_picture(self, camera: str, position: np.ndarray) -> tuple[float, float, float]:
        """Where a point of the base frame is in a picture: u to the right, v down, 0 to 1; and 1 if it is inside.

        Does not know what hides it."""
        index = self.model.camera(camera).id
        x, y, z = self.data.cam_xmat[index].reshape(3, 3).T @ (position - self.data.cam_xpos[index])  # looks along -z
        if not z < -0.01:
            return 0.0, 0.0, 0.0
        scale = 0.5 / math.tan(math.radians(float(self.model.cam_fovy[index])) / 2)
        u, v = 0.5 - scale * x / z, 0.5 + scale * y / z
        return (u, v, 1.0) if 0.0 <= u <= 1.0 and 0.0 <= v <= 1.0 else (0.0, 0.0, 0.0)

    def focal_px(self, camera: str) -> float:
        """Of a camera's picture, square pixels [px]."""
        height_px = next(c.height_px for c in self._contract.cameras if c.name == camera)
        return 0.5 * height_px / math.tan(math.radians(float(self.model.camera(camera).fovy[0])) / 2)

    def held(self) -> int | None:
        """Index of the object that both fingers touch, if any."""
        touching: dict[int, set[int]] = {}
        for k in range(self.data.ncon):
            contact = self.data.contact[k]
            bodies = (int(self.model.geom_bodyid[contact.geom1]), int(self.model.geom_bodyid[contact.geom2]))
            for a, b in (bodies, bodies[::-1]):
                if a in self._object_body and b in self._fingers:
                    touching.setdefault(self._object_body.index(a), set()).add(b)
        return next((i for i, fingers in touching.items() if len(fingers) > 1), None)

    def in_bowl(self, index: int) -> int | None:
        """The bowl that object `index` lies in, if any."""
        position = self.object_positions()[index]
        for k, bowl in enumerate(self.bowl_positions()):
            inside = np.linalg.norm(position[:2] - bowl[:2]) < scene.BOWL_RIM_RADIUS_M
            if inside and position[2] - bowl[2] < scene.BOWL_HEIGHT_M + 0.015:
                return k
        return None

    def outcome(self) -> Outcome:
        """Judged from the physics state at this instant."""
        positions = self.object_positions()
        shift = positions - self._start
        held = self.held()
        others = [i for i in range(len(self.items)) if i != self.named]
        wrong = next(
            (i for i in others if np.linalg.norm(shift[i, :2]) > MOVED_AWAY_M or shift[i, 2] > WRONG_LIFT_M), None
        )
        if self.task.family == "pick":
            success = bool(shift[self.named, 2] > LIFTED_M and held == self.named)
        else:
            success = self.in_bowl(self.named) == self.destination and held is None
        name = f"{self.task.colour} {self.task.shape}"
        detail = (
            f"the {name} is {shift[self.named, 2] * 100:.1f} cm above and "
            f"{np.linalg.norm(shift[self.named, :2]) * 100:.1f} cm beside its start"
        )
        if wrong is not None:
            detail += f"; the {self.items[wrong].colour} {self.items[wrong].shape} was moved"
        return Outcome(success, wrong is not None, detail)
