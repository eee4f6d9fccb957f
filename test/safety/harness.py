"""Perception, a policy stub, supervisor, arm controller and MuJoCo in one process, in fake time.

Every tick checks the eight invariants of the safety specification (section 6); `measure` gives reaction and rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from core_invariants import Invariants
from core_loop import WRITER, Loop, panda
from injection import Injection, Stream

from vla_ros.arm.controller import ArmController, ArmOutput
from vla_ros.core.errors import Invalid
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.supervisor import Decision, Inputs
from vla_ros.core.types import Chunk, JointSample, Severity
from vla_ros.sim.scene import TIMESTEP_S
from vla_ros.sim.world import World

SEED = 3
CONSTANTS = ("jnt_range", "jnt_limited", "dof_damping", "body_pos", "body_quat")  # of the model; tests change them


@lru_cache(maxsize=2)
def shared_world(rendered: bool) -> tuple[World, dict[str, np.ndarray]]:
    world = World(panda(), render=rendered)
    return world, {name: getattr(world.model, name).copy() for name in CONSTANTS}


@dataclass
class Bench(Loop):
    """A `Loop` whose arm is MuJoCo's behind the real arm controller, and whose cameras are looked at."""

    rendered: bool = False
    effort: bool = True  # the joint states carry torques

    def __post_init__(self) -> None:
        super().__post_init__()
        self.world, constants = shared_world(self.rendered)
        for name, value in constants.items():
            getattr(self.world.model, name)[:] = value
        self.world.reset(SEED)
        self.world.teleport(self.contract.poses.ready_rad, self.contract.gripper.open_m)
        self.dofs = np.array([self.world.model.joint(name).dofadr[0] for name in self.contract.joint_names])
        self.arm_controller = ArmController(self.contract)
        self.builder = ObservationBuilder(self.contract)
        self.rng = np.random.default_rng(SEED)
        self.streams: dict[str, Stream] = {}
        self.noise = [self.rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(7)]
        self.frames, self.next_frame_s = 0, self.now_s
        self.newest: JointSample | None = None
        self.rejected: list[str] = []  # reasons of perception
        self.measured: list[tuple[float, float]] = []  # (t, fastest measured joint)
        self.outputs: list[tuple[float, ArmOutput]] = []
        self.distort = lambda data, now_s: None  # what a bad policy does to the rows of a good one
        self.invariants = Invariants(self.contract, self.kinematics)
        self.invariants.watch(self.supervisor.executor)

    # -- injection -------------------------------------------------------------------------------------------

    def inject(self, injection: Injection) -> None:
        refresh = {
            "camera": lambda old, new: (*old[:2], *new[2:]),
            "policy": lambda old, new: old,
            "joints": lambda old, new: dataclasses.replace(old, measured_at_s=new.measured_at_s),
            "clock": lambda old, new: old,
            "bus": lambda old, new: old,
        }[injection.target]
        for source in [c.name for c in self.contract.cameras] if injection.target == "camera" else [""]:
            corrupt = CORRUPT[injection.target]
            self.streams[injection.target + source] = Stream(injection, self.now_s, refresh, corrupt)
        self.fault_s = self.now_s + injection.start_s

    def _through(self, target: str, item, source: str = "") -> list:
        """`source`: which camera. Each has a stream of its own."""
        stream = self.streams.get(target + source)
        return [item] if stream is None else stream(self.now_s, item)

    # -- one tick --------------------------------------------------------------------------------------------

    def tick(self, dt_s: float | None = None, **inputs) -> Decision:
        self.now_s += self.contract.period_s if dt_s is None else dt_s
        now = self.now_s
        self.q, self.qd, self.width = self.world.joints()
        effort = self.world.data.qfrc_applied[self.dofs].copy() if self.effort else None
        for sample in self._through("joints", JointSample(self.q, self.qd, self.width, now, effort)):
            self._take_sample(sample)
        self._look(now)
        due = []
        while self.chunks and self.chunks[0][0] <= now:
            due += self._through("policy", self.chunks.popleft()[1])
        inputs["chunks"] = (*due, *inputs.get("chunks", ()))
        inputs["verdicts"] = (*self.verdicts, *inputs.get("verdicts", ()))
        self.verdicts = []
        (read_s,) = self._through("clock", now)
        status = self.builder.status(now)
        given = Inputs(joints=self.newest, perception=status, **inputs)
        decision = self.supervisor.update(read_s, given)
        if decision.publish_instruction is not None and self.auto_verdict:
            self.instruction_id = decision.publish_instruction[0]
            if self.instruction_id:
                self.verdicts.append((self.instruction_id, True, ""))
        self._drive(now, decision, given.interrupts)
        self.decisions.append(decision)
        self.times.append(now)
        self.measured.append((now, float(np.abs(self.qd).max())))
        self._check(read_s, decision, given)
        return decision

    def _take_sample(self, sample: JointSample) -> None:
        self.newest = sample
        try:
            self.builder.add_joints(sample, round(sample.measured_at_s * 1e9))
        except Invalid as error:
            self.rejected.append(error.reason)

    def _look(self, now: float) -> None:
        """Cameras at their rate; every second frame goes to the policy stub."""
        if now < self.next_frame_s - 1e-9:
            return
        self.next_frame_s += 1.0 / self.contract.cameras[0].rate_hz
        self.frames += 1
        stamp_ns = round(now * 1e9)
        for camera in self.contract.cameras:
            picture = self.world.render(camera.name) if self.rendered else self.noise[self.frames % 7]
            for name, rgb, stamp in self._through("camera", (camera.name, picture, stamp_ns), camera.name):
                try:
                    self.builder.add_image(name, rgb, stamp, stamp_ns, now)
                except Invalid as error:
                    self.rejected.append(error.reason)
        if self.frames % 2 == 0 and self.policy_on and self.instruction_id:
            try:
                self.builder.build(now)
            except Invalid as error:
                self.rejected.append(error.reason)  # A1, A3, A6: the policy is not called
            else:
                chunk = self.make_chunk()
                self.distort(chunk.data, now)
                self.chunks.append((now + self.latency_s, chunk))

    def _drive(self, now: float, decision: Decision, interrupts: int) -> None:
        commands = [] if decision.command is None else self._through("bus", decision.command)
        output = self.arm_controller.update(now, commands[-1] if commands else None, self.newest, interrupts)
        if output is not None:
            self.outputs.append((now, output))
            self.world.command(output.q_rad, output.qd_rad_s)
            self.world.grip(output.gripper_width_m)
        self.world.step(round(self.contract.period_s / TIMESTEP_S))

    def _check(self, read_s: float, decision: Decision, inputs: Inputs) -> None:
        """The eight invariants; the first three of them also on what reaches the arm."""
        self.invariants.take(read_s, decision, interrupts=inputs.interrupts, rearms=bool(inputs.rearms))
        if not self.outputs:
            return
        output, limits = self.outputs[-1][1], self.contract.limits
        q, v = output.q_rad, output.qd_rad_s
        assert np.isfinite(q).all() and np.isfinite(v).all() and np.isfinite(output.gripper_width_m)
        assert (q >= limits.q_lo_rad - 1e-6).all() and (q <= limits.q_hi_rad + 1e-6).all()
        assert (np.abs(v) <= limits.v_max_rad_s + 1e-6).all()

    # -- stories and figures ---------------------------------------------------------------------------------

    def moving(self, seconds: float = 0.8) -> Bench:
        """Armed, instructed, and well on its way over the table."""
        if self.goal_p is None:
            self.goal_p, self.speed_m_s = np.array([0.55, 0.3, 0.15]), 0.25
        self.arm()
        self.run(0.1)
        assert not self.arm_controller.latched
        self.instruct()
        self.run(seconds)
        self.fault_s = self.now_s
        return self

    def touches(self, body: str) -> bool:
        """The arm touches this body of the world."""
        model, data = self.world.model, self.world.data
        index = model.body(body).id
        pairs = [{int(model.geom_bodyid[c.geom1]), int(model.geom_bodyid[c.geom2])} for c in data.contact[: data.ncon]]
        return any(index in pair and len(pair) > 1 and 0 not in pair for pair in pairs)

    def react_s(self, severity: Severity) -> float:
        """From the fault until the supervisor or the arm controller brakes."""
        for t, decision in zip(self.times, self.decisions, strict=True):
            arm = any(at == t and output.latched for at, output in self.outputs) and severity >= Severity.STOP
            if t >= self.fault_s and (decision.severity >= severity or arm):
                return t - self.fault_s
        raise AssertionError(f"no reaction: {self.decisions[-1].severity.name} {self.decisions[-1].reason.value}")

    def rest_s(self, limit_rad_s: float = 0.01, for_s: float = 0.1) -> float:
        """From the fault until the measured arm stands, and stands for a while."""
        since = None
        for t, fastest in self.measured:
            if t < self.fault_s or fastest >= limit_rad_s:
                since = None
            elif since is None:
                since = t
            elif t - since >= for_s:
                return since - self.fault_s
        raise AssertionError(f"the arm does not come to rest: {self.measured[-1][1]:.3f} rad/s")

    def command_rest_s(self) -> float:
        """From the fault until the command to the arm stands."""
        moving = [t for t, output in self.outputs if np.abs(output.qd_rad_s).max() >= 0.01]
        return moving[-1] + self.contract.period_s - self.fault_s

    def fingerprint(self) -> str:
        return hashlib.sha256(self.stream()[1].tobytes()).hexdigest()


def _corrupt_sample(sample: JointSample, rng: np.random.Generator) -> JointSample:
    q = sample.q_rad.copy()
    q[rng.integers(q.size)] = np.nan
    return dataclasses.replace(sample, q_rad=q)


def _corrupt_chunk(chunk: Chunk, rng: np.random.Generator) -> Chunk:
    data = chunk.data.copy()
    data[rng.integers(len(data)), rng.integers(data.shape[1])] = np.nan
    return dataclasses.replace(chunk, data=data)


CORRUPT = {
    "camera": lambda item, rng: (item[0], np.full_like(item[1], rng.integers(0, 4)), item[2]),
    "policy": _corrupt_chunk,
    "joints": _corrupt_sample,
    "clock": lambda now_s, rng: now_s - 5.0,
    "bus": lambda command, rng: dataclasses.replace(command, q_rad=command.q_rad + 0.5),
}
__all__ = ["WRITER", "Bench", "shared_world"]
