"""A closed loop in fake time: a policy stub, the supervisor, and a plant that is where it was told after a delay."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from core_invariants import CommandStream

from vla_ros.core.contract import Contract, JointLimits, load
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import MotionState, stop_distance
from vla_ros.core.supervisor import Decision, Inputs, Supervisor
from vla_ros.core.types import Chunk, JointSample

WRITER, POLICY_WRITER = 11, 22


@lru_cache(maxsize=1)
def panda() -> Contract:
    return load("panda")


@lru_cache(maxsize=1)
def panda_kinematics() -> Kinematics:
    return Kinematics(panda())


@dataclass
class Loop:
    """`tick()` advances by one control period (or `dt_s`) and keeps every decision."""

    contract: Contract = field(default_factory=panda)
    now_s: float = 100.0
    policy_period_s: float = 0.13
    latency_s: float = 0.05
    goal_p: np.ndarray | None = None  # where the stub moves the tool; None: it stays
    speed_m_s: float = 0.15
    opening: float = 1.0
    done_probability: float = 0.0
    policy_on: bool = True
    joints_on: bool = True
    arm_on: bool = True
    auto_verdict: bool = True

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.contract, Kinematics(self.contract), WRITER)
        self.kinematics = panda_kinematics()
        self.q = self.contract.poses.ready_rad.copy()
        self.qd = np.zeros(self.contract.n_joints)
        self.width = 0.08
        self.pipeline: deque = deque([(self.q, self.qd)] * 3)  # 30 ms
        self.chunks: deque = deque()  # (due_s, chunk)
        self.next_policy_s = self.now_s
        self.sequence = 0
        self.instruction_id = 0  # what the policy stub works on
        self.verdicts: list = []
        self.decisions: list[Decision] = []
        self.times: list[float] = []

    def sample(self) -> JointSample:
        return JointSample(self.q.copy(), self.qd.copy(), self.width, self.now_s)

    def make_chunk(self, **changes) -> Chunk:
        """What the stub proposes from the pose it sees now: straight towards the goal at constant speed."""
        action = self.contract.action
        data = np.zeros((action.rows, action.cols))
        if self.goal_p is not None:
            p = self.kinematics.tool_pose(self.q)[1]
            way = self.goal_p - p
            distance = float(np.linalg.norm(way))
            for k in range(action.rows):
                travelled = min(self.speed_m_s * action.dt_s * (k + 1), distance)
                data[k, :3] = way / max(distance, 1e-9) * travelled
        data[:, -1] = self.opening
        self.sequence += 1
        values = {
            "observed_at_s": self.now_s,
            "writer_id": POLICY_WRITER,
            "instruction_id": self.instruction_id,
            "sequence": self.sequence,
            "contract_hash": self.contract.hash,
            "space": action.space,
            "dt_s": action.dt_s,
            "data": data,
            "done_probability": self.done_probability,
        }
        return Chunk(**(values | changes))

    def tick(self, dt_s: float | None = None, **inputs) -> Decision:
        self.now_s += self.contract.period_s if dt_s is None else dt_s
        if self.policy_on and self.instruction_id and self.now_s >= self.next_policy_s:
            self.next_policy_s = self.now_s + self.policy_period_s
            self.chunks.append((self.now_s + self.latency_s, self.make_chunk()))
        due = []
        while self.chunks and self.chunks[0][0] <= self.now_s:
            due.append(self.chunks.popleft()[1])
        inputs["chunks"] = tuple(due) + tuple(inputs.get("chunks", ()))
        inputs["verdicts"] = tuple(self.verdicts) + tuple(inputs.get("verdicts", ()))
        self.verdicts = []
        if "joints" not in inputs and self.joints_on:
            inputs["joints"] = self.sample()
        decision = self.supervisor.update(self.now_s, Inputs(**inputs))
        if decision.publish_instruction is not None:
            instruction_id, _ = decision.publish_instruction
            if instruction_id and self.auto_verdict:
                self.verdicts.append((instruction_id, True, ""))
            if self.auto_verdict:
                self.instruction_id = instruction_id
        if decision.command is not None:
            if self.arm_on:
                self.pipeline.append((decision.command.q_rad, decision.command.qd_rad_s))
            if len(self.pipeline) > 3:
                self.q, self.qd = self.pipeline.popleft()
            else:
                self.qd = np.zeros_like(self.qd)
            self.width = decision.command.gripper_width_m
        self.decisions.append(decision)
        self.times.append(self.now_s)
        return decision

    def run(self, seconds: float, **inputs) -> Decision:
        decision = self.tick(**inputs) if inputs else self.tick()
        for _ in range(round(seconds / self.contract.period_s) - 1):
            decision = self.tick()
        return decision

    def arm(self) -> None:
        self.run(0.7)
        decision = self.tick(rearms=("t",))
        assert decision.replies[0].accepted, decision.replies

    def instruct(self, text: str = "pick up the red cube") -> None:
        self.tick(instructs=(("i", text, 0),))
        self.tick()

    def stream(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(t, q, v) of every command so far."""
        rows = [(t, d.command.q_rad, d.command.qd_rad_s) for t, d in zip(self.times, self.decisions, strict=True)
                if d.command is not None]  # fmt: skip
        return np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows])


def feasible_state(limits: JointLimits, rng: np.random.Generator) -> MotionState:
    """Any state from which the limits can still be kept: speed after taking the acceleration back, and a stop."""
    A, J, V = limits.a_max_rad_s2, limits.j_max_rad_s3, limits.v_max_rad_s
    a = rng.uniform(-A, A)
    room = np.maximum(V - a * a / (2.0 * J), 0.0)
    v = np.where(a > 0.0, rng.uniform(-V, room), rng.uniform(-room, V))
    a = np.where(np.abs(v) + a * a / (2.0 * J) <= V, a, 0.0)
    margin = 2.0 * J * (2.0 * panda().period_s) ** 3
    low = limits.q_lo_rad + margin + stop_distance(-v, -a, A, J)
    high = limits.q_hi_rad - margin - stop_distance(v, a, A, J)
    inside = low < high
    v, a = np.where(inside, v, 0.0), np.where(inside, a, 0.0)
    q = np.where(inside, rng.uniform(np.minimum(low, high), np.maximum(low, high)), 0.0)
    return MotionState(q, v, a)


def assert_stream_inside_limits(loop: Loop) -> None:
    """Invariants 1 to 4 over all commands so far."""
    stream = CommandStream(loop.contract)
    for t_s, decision in zip(loop.times, loop.decisions, strict=True):
        stream.take(t_s, decision)
