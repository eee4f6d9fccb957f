"""The table-top world: physics, cameras, the arm's joint servo, and the truth about what happened.

Deterministic: the same seed and the same commands give the same states. One thread at a time may use a World; the
renderer's GL context belongs to the thread that renders first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.sim import choices, dressing, scene, verdict
from vla_ros.sim.tasks import FAMILIES, PAIRS, Task, sentence
from vla_ros.sim.verdict import Outcome

SERVO_STIFFNESS = 1600.0  # 1/s^2, computed-torque gains: natural frequency 40 rad/s, critically damped
SERVO_DAMPING = 80.0  # 1/s
RESISTED_FOR_S = 1.0
EXTRAPOLATE_S = 0.02  # a setpoint's velocity is followed this long; then the servo holds (two control periods)
FINGER_STIFFNESS_N_M = 2000.0
FINGER_DAMPING_N_S_M = 60.0
DRAWS_MAX = 300  # scenes that are drawn until one has a task of the wanted kind
DRAWS_FOR_TASK = 20  # the same where the task is given: then the last scene is taken, whatever it is


@dataclass(frozen=True)
class Start:
    """How things were when the present task began."""

    objects: np.ndarray  # (objects, 3) centres [m]
    drawer_opening_m: float
    lit: bool


class World:
    """Table-top with the contract's arm. Lengths in metres, base frame; quaternions (w, x, y, z).

    `pairs` of colour and shape: what scenes are made of. Others are there only where a given task names them."""

    def __init__(
        self,
        contract: Contract,
        seed: int = 0,
        render: bool = True,
        family: str | None = None,
        pairs: Sequence[tuple[str, str]] = PAIRS,
    ) -> None:
        self._contract, self.pairs = contract, tuple(pairs)
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
        fingers = [j for j in range(self.model.njnt) if "finger" in self.model.joint(j).name]
        self._finger_q = self.model.jnt_qposadr[fingers]
        self._finger_v = self.model.jnt_dofadr[fingers]
        self._effort = np.array([87.0] * 4 + [12.0] * 3)[: contract.n_joints]  # Nm, Panda datasheet
        self._resistance: deque[tuple[float, float]] = deque()  # time [s] and share, see `resisted`
        self._object_body = [self.model.body(f"object{i}").id for i in range(scene.OBJECT_COUNT)]
        self._object_geom = [self.model.geom(f"object{i}").id for i in range(scene.OBJECT_COUNT)]
        self._object_q = [int(self.model.jnt_qposadr[self.model.body_jntadr[b]]) for b in self._object_body]
        self._bowl_body = [self.model.body(f"bowl{i}").id for i in range(scene.BOWL_COUNT)]
        self._bowl_q = [int(self.model.jnt_qposadr[self.model.body_jntadr[b]]) for b in self._bowl_body]
        self._bowl_geoms = [np.flatnonzero(self.model.geom_bodyid == b) for b in self._bowl_body]
        self._tool = self.model.body(contract.tool_frame).id
        self._finger = np.array(["finger" in self.model.body(b).name for b in range(self.model.nbody)])
        self._drawer_body = self.model.body("drawer").id
        self._drawer_q = int(self.model.joint("drawer").qposadr[0])
        self._button_q = int(self.model.joint("button").qposadr[0])
        self._cap_geom = self.model.geom("button_cap").id
        self._camera_rest = {
            name: (self.model.camera(name).pos.copy(), self.model.camera(name).quat.copy())
            for name in ("scene", "wrist")
        }
        self.reset(seed, family)

    # ---------------------------------------------------------------- episodes

    def reset(
        self,
        seed: int | tuple[int, ...],
        family: str | None = None,
        task: Task | None = None,
        suitable: Callable[[World, Task], bool] = choices.with_trained_pairs,
    ) -> None:
        """A new scene and a new task, functions of the arguments alone. With `task` the scene holds what it names;
        otherwise a task is drawn that can be done, is not done yet, and is `suitable`.

        Evaluation seeds are integers; demonstrations use tuples, so that the two can never share a scene. Raises
        ValueError for an unknown family, and where no scene has a suitable task."""
        rng = np.random.default_rng(seed)
        chosen = task.family if task else family or list(FAMILIES)[int(rng.integers(len(FAMILIES)))]
        if chosen not in FAMILIES:
            raise ValueError(f"family {chosen!r} is not one of {', '.join(FAMILIES)}")
        for draw in range(DRAWS_FOR_TASK if task else DRAWS_MAX):
            mujoco.mj_resetData(self.model, self.data)
            self._dress(rng, task)
            self._place(rng)
            q = np.asarray(self._contract.poses.ready_rad, dtype=float)
            self.teleport(q + rng.uniform(-0.03, 0.03, q.shape), self._contract.gripper.open_m)
            self.settle()
            found = choices.open_tasks(self, chosen)
            if task is None:
                found = [t for t in found if suitable(self, t)]
            elif task in found or draw == DRAWS_FOR_TASK - 1:
                found = [task]
            else:
                continue
            if found:
                self.set_task(found[int(rng.integers(len(found)))])
                self.instruction = sentence(self.task, rng)
                return
        raise ValueError(f"none of {DRAWS_MAX} scenes has a suitable task of family {chosen!r}")

    def set_task(self, task: Task) -> None:
        """What `outcome` judges from now on. Raises ValueError where the scene lacks what it names."""
        for pair in task.pairs:
            self.index(pair)
        self.task = task

    def mark(self) -> None:
        """Remember how things are: a verdict compares with this."""
        self.start = Start(self.object_positions(), self.drawer_opening(), self.lit)

    def _dress(self, rng: np.random.Generator, task: Task | None) -> None:
        """Shapes, sizes, colours, light and camera poses."""
        self.items = dressing.draw_items(rng, task, self.pairs)
        for body, geom, item in zip(self._object_body, self._object_geom, self.items, strict=True):
            dressing.shape_object(self.model, body, geom, item, dressing.shade(item.colour, rng))
        self.bowls = dressing.draw_bowls(rng, task)
        for geoms, colour in zip(self._bowl_geoms, self.bowls, strict=True):
            self.model.geom_rgba[geoms, :3] = dressing.shade(colour, rng)
        dressing.light_and_cameras(self.model, self._camera_rest, rng)
        mujoco.mj_setConst(self.model, self.data)

    def _place(self, rng: np.random.Generator) -> None:
        layout = dressing.draw_layout(rng, len(self.bowls), len(self.items))
        for index, xy in zip(self._bowl_q, layout.bowls, strict=True):
            self._pose(index, [*xy, 0.0], rng.uniform(-math.pi, math.pi))
        for index, xy, item in zip(self._object_q, layout.objects, self.items, strict=True):
            self._pose(index, [*xy, item.half_height_m + 0.001], rng.uniform(-math.pi, math.pi))
        face, button = layout.drawer_face, layout.button
        for name, x, y in (
            ("tray", *layout.tray),
            ("cabinet", face[0] + scene.CABINET_HALF_M[0], face[1]),
            ("button", *button),
        ):
            self.model.body_pos[self.model.body(name).id] = [x, y, 0.0]
        self.data.qpos[self._drawer_q] = layout.drawer_opening_m
        self._light(layout.lit)

    def _light(self, lit: bool) -> None:
        self.lit = lit
        self.model.geom_rgba[self._cap_geom, :3] = scene.CAP_LIT if lit else scene.CAP_DARK

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
        """Let things come to rest, then remember where they are."""
        self.step(150)
        self.data.time = 0.0
        self._resistance.clear()
        self._commanded_at = 0.0
        self.mark()

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
            if not self.lit and d.qpos[self._button_q] > scene.CAP_PRESSED_M:
                self._light(True)
        self._resistance.append((d.time, float(np.abs(d.qfrc_constraint[self._v_index] / self._effort).max())))
        while self._resistance[0][0] < d.time - RESISTED_FOR_S:
            self._resistance.popleft()

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

    @property
    def resisted(self) -> float:
        """Share of a joint's greatest torque that things in the way took from it: the most of the last second."""
        return max((share for _, share in self._resistance), default=0.0)

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

    def object_speeds(self) -> np.ndarray:
        """(objects,) m/s."""
        first = self.model.body_dofadr[self._object_body]
        return np.array([float(np.linalg.norm(self.data.qvel[k : k + 3])) for k in first])

    def tray_position(self) -> np.ndarray:
        """(3,) middle of the tray, on the table."""
        return self.data.body("tray").xpos.copy()

    def drawer_opening(self) -> float:
        """m, 0 when shut."""
        return float(self.data.qpos[self._drawer_q])

    def handle_position(self) -> np.ndarray:
        """(3,) middle of the post that the drawer is pulled by."""
        return self.data.xpos[self._drawer_body] + np.array([scene.HANDLE_X_M, 0.0, scene.HANDLE_Z_M])

    def cap_position(self) -> np.ndarray:
        """(3,) middle of the button's upper face, where it is now."""
        return self.data.geom_xpos[self._cap_geom] + np.array(
            [0.0, 0.0, float(self.model.geom_size[self._cap_geom, 1])]
        )

    def index(self, pair: tuple[str, str] | None) -> int:
        """Index of the object with this colour and shape. Raises ValueError where there is none."""
        for i, item in enumerate(self.items):
            if (item.colour, item.shape) == pair:
                return i
        raise ValueError(f"the scene has no {' '.join(pair or ('object',))}")

    def upright(self, index: int) -> bool:
        """Whether one of the object's flat ends is down; balls always are."""
        vertical = np.abs(self.data.xmat[self._object_body[index]].reshape(3, 3)[2])
        shape = self.items[index].shape
        return shape == "ball" or float(vertical[2] if shape == "cylinder" else vertical.max()) > 0.97

    def lies_on(self, above: int, below: int) -> bool:
        """Whether one object is right above another and touches it."""
        offset = self.data.xpos[self._object_body[above]] - self.data.xpos[self._object_body[below]]
        reach = self.items[above].half_height_m + self.items[below].half_height_m
        return bool(0.5 * reach < offset[2] < reach + 0.012 and math.hypot(offset[0], offset[1]) < 0.035)

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

    def _gripped(self) -> set[int]:
        """Bodies that both fingers touch."""
        bodies = self.model.geom_bodyid[self.data.contact.geom]  # (contacts, 2)
        finger = self._finger[bodies]
        one = finger[:, 0] != finger[:, 1]
        touching: dict[int, set[int]] = {}
        for (a, b), (first, _) in zip(bodies[one], finger[one], strict=True):
            touching.setdefault(int(b if first else a), set()).add(int(a if first else b))
        return {body for body, fingers in touching.items() if len(fingers) > 1}

    def held(self) -> int | None:
        """Index of the object that is between the fingers and touches both, if any."""
        gripped, width = self._gripped(), self.data.qpos[self._finger_q].sum()
        for i, (body, item) in enumerate(zip(self._object_body, self.items, strict=True)):
            if body in gripped and width > 0.6 * item.width_m:  # closed fingers that push it touch it, too
                return i
        return None

    def holds_handle(self) -> bool:
        """Whether the drawer's handle is between the fingers and touches both."""
        width = self.data.qpos[self._finger_q].sum()
        return self._drawer_body in self._gripped() and bool(width > 1.2 * scene.HANDLE_HALF_M[1])

    def outcome(self) -> Outcome:
        """The verdict on the world's task at this instant."""
        return verdict.outcome(self)
