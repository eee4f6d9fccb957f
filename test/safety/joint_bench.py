"""The bench with a policy that proposes joint positions: it can fold the arm as no tool motion over a table does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache

import mujoco
import numpy as np
from core_loop import panda
from harness import Bench

from vla_ros.core.contract import Contract
from vla_ros.core.decision import Decision, SpeedMode
from vla_ros.core.types import ActionSpace, Chunk
from vla_ros.sim import scene

EVERYWHERE = dataclasses.replace(panda().workspace, lower_m=np.full(3, -2.0), upper_m=np.full(3, 2.0))


def joint_contract(workspace=EVERYWHERE, **changes) -> Contract:
    """The Panda's contract with joint positions as actions."""
    action = dataclasses.replace(panda().action, space=ActionSpace.JOINT_POSITION, cols=panda().n_joints + 1)
    return dataclasses.replace(panda(), action=action, workspace=workspace, **changes)


@dataclass
class JointBench(Bench):
    contract: Contract = field(default_factory=joint_contract)
    goal_q: np.ndarray | None = None  # all joints go there together
    speed_rad_s: float = 0.8  # of the fastest joint
    start_q: np.ndarray | None = None
    speed_mode: str = ""  # what the mode input says in every tick: "", "full" or "reduced"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_q is not None:
            self.world.teleport(self.start_q, self.contract.gripper.open_m)
            self.q = self.start_q

    def make_chunk(self, **changes) -> Chunk:
        action = self.contract.action
        way = np.zeros(self.contract.n_joints) if self.goal_q is None else self.goal_q - self.q
        share = self.speed_rad_s * action.dt_s * np.arange(1, action.rows + 1) / max(float(np.abs(way).max()), 1e-9)
        rows = self.q + np.minimum(share, 1.0)[:, None] * way  # (rows, n)
        return super().make_chunk(data=np.hstack([rows, np.full((action.rows, 1), self.opening)]), **changes)

    def tick(self, dt_s: float | None = None, **inputs) -> Decision:
        if self.speed_mode:
            inputs["speed_mode"] = SpeedMode(self.speed_mode == "reduced", self.now_s)
        return super().tick(dt_s, **inputs)

    def go(self, goal_q: np.ndarray) -> JointBench:
        """Armed, with an instruction, on the way to a goal."""
        self.goal_q = goal_q
        return self.moving(0.0)

    def until(self, reason, seconds: float = 5.0) -> Decision:
        for _ in range(round(seconds / self.contract.period_s)):
            if self.tick().reason is reason:
                return self.decisions[-1]
        raise AssertionError(f"no {reason.value}: {self.decisions[-1].reason.value}, {self.supervisor._mover.outlook}")


@lru_cache(maxsize=1)
def _touching_world() -> tuple[mujoco.MjModel, mujoco.MjData, np.ndarray, set[tuple[int, int]]]:
    """The scene with an arm that meets itself, which the simulated one does not, and which bodies touch by design."""
    model = scene.build(panda())
    arm = [b for b in range(model.nbody) if model.body(b).name.startswith("panda")]
    own = np.isin(model.geom_bodyid, arm)
    model.geom_contype[own], model.geom_conaffinity[own] = 4, 4
    model.geom_contype[~own] = model.geom_conaffinity[~own] = 0
    model.body_contype[:], model.body_conaffinity[:] = 4, 4  # MuJoCo's first, coarse filter
    data = mujoco.MjData(model)
    index = np.array([model.joint(name).qposadr[0] for name in panda().joint_names])
    return model, data, index, _contacts(model, data, index, panda().poses.ready_rad)


def _contacts(model, data, index: np.ndarray, q: np.ndarray) -> set[tuple[int, int]]:
    data.qpos[index] = q
    mujoco.mj_forward(model, data)
    return {tuple(sorted(int(model.geom_bodyid[g]) for g in contact.geom)) for contact in data.contact}


def self_contacts(q: np.ndarray) -> set[tuple[str, str]]:
    """Links of the arm that touch at `q` in MuJoCo, less those that touch in the ready pose as well."""
    model, data, index, by_design = _touching_world()
    return {(model.body(a).name, model.body(b).name) for a, b in _contacts(model, data, index, q) - by_design}
