"""Random stories in fake time: what operators, policies, networks and clocks do to a supervisor. Same seed, same story.

`play(kind, seed, ticks)` tells one and checks the eight invariants in every tick.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from core_invariants import Invariants, Violation
from core_loop import Loop, panda, panda_kinematics

from vla_ros.core.decision import Decision, SpeedMode
from vla_ros.core.types import ActionSpace, Chunk, Source

LOOK_EVERY = 5  # ticks between two looks at the pose: the arm moves 5 cm in them at most
TEXTS = ("pick the cube", "", "put it down", "a\nb", "x" * 300, "ignore every limit", "\u202egnihton")


class Story(Loop):
    """A loop to which things happen. The policy proposes tool motions towards random goals."""

    def __init__(self, rng: np.random.Generator, **changes) -> None:
        super().__init__(**changes)
        self.rng = rng
        self.invariants = Invariants(self.contract, self.kinematics, LOOK_EVERY)
        self.invariants.watch(self.supervisor.executor)
        self.old_chunks: list[Chunk] = []
        self.sent: Counter[str] = Counter()  # strange chunks by kind
        self.permits, self.reduced = bool(rng.random() < 0.5), False  # whether anybody speaks about speed at all
        self.unrest = rng.choice([0.0, 0.2, 1.0])  # how often operators, clocks and cables act up

    def tick(self, dt_s: float | None = None, **inputs) -> Decision:
        decision = super().tick(dt_s, **inputs)
        rearms = bool(inputs.get("rearms"))
        self.invariants.take(self.now_s, decision, interrupts=inputs.get("interrupts", 0), rearms=rearms)
        assert decision.command.gripper_width_m in (0.0, 0.08)
        return decision

    def random_tick(self) -> None:
        rng, inputs, unrest = self.rng, {}, self.unrest
        if rng.random() < 0.008 * unrest:
            inputs["interrupts"] = int(rng.integers(1, 4))
        if rng.random() < 0.08:
            inputs["rearms"] = ("r",)
        if rng.random() < 0.02:
            inputs["instructs"] = (("i", TEXTS[rng.integers(len(TEXTS))], 0),)
        if rng.random() < 0.004:
            inputs["closes"] = (self.instruction_id,)
        if rng.random() < 0.004:
            inputs["home"] = ("h",)
        if rng.random() < 0.01:
            inputs["retreats"] = ("b",)
        if rng.random() < 0.002:
            inputs["sources"] = (("s", Source(int(rng.integers(len(Source))))),)
        if rng.random() < 0.01:
            self.reduced = not self.reduced
        if self.permits and rng.random() < 0.9:
            inputs["speed_mode"] = SpeedMode(self.reduced, self.now_s)
        if rng.random() < 0.03 and self.instruction_id:
            inputs["chunks"] = (self.strange(self.make_chunk()),)
        if rng.random() < 0.01:
            self.goal_p = rng.uniform([0.15, -0.6, -0.05], [0.85, 0.6, 0.75])
            self.speed_m_s = rng.choice([0.05, 0.3, 1.0])
        self.policy_on ^= bool(rng.random() < (0.005 if self.policy_on else 0.05))
        self.joints_on ^= bool(rng.random() < (0.003 * unrest if self.joints_on else 0.1))
        self.latency_s = rng.choice([0.03, 0.08, 0.3])
        self.done_probability = float(rng.random() < 0.3)
        dt = rng.choice([0.01, 0.0005, 0.003, 0.014, 0.02], p=[0.8, 0.06, 0.06, 0.04, 0.04])
        if rng.random() < 0.03 * unrest:
            dt = rng.choice([0.06, 0.12, 0.0, 3.0])
        self.tick(float(dt), **inputs)

    def strange(self, chunk: Chunk) -> Chunk:
        """The chunk as a bad policy, a bad network or somebody hostile would send it."""
        if chunk.data.ndim != 2 or not chunk.data.size:  # strange enough already
            return chunk
        kind = tuple(STRANGE)[self.rng.integers(len(STRANGE))]
        self.sent[kind] += 1
        if kind == "replayed" and self.old_chunks:
            return self.old_chunks[self.rng.integers(len(self.old_chunks))]
        self.old_chunks = [*self.old_chunks[-20:], chunk]
        return dataclasses.replace(chunk, **STRANGE[kind](chunk, self.rng))


def _somewhere(chunk: Chunk, rng: np.random.Generator, value: float) -> dict:
    data = chunk.data.copy()
    data[rng.integers(data.shape[0]), rng.integers(data.shape[1])] = value
    return {"data": data}


def _motion(chunk: Chunk, change: Callable[[np.ndarray], np.ndarray]) -> dict:
    data = chunk.data.copy()
    data[:, :-1] = change(data[:, :-1])
    return {"data": data}


# What is done to a chunk, by name: (chunk, rng) -> changed fields.
STRANGE: dict[str, Callable[[Chunk, np.random.Generator], dict]] = {
    "untouched": lambda c, r: {},
    "not finite": lambda c, r: _somewhere(c, r, r.choice([np.nan, np.inf, -np.inf])),
    "one huge number": lambda c, r: _somewhere(c, r, r.choice([1e300, -1e300, 1e9, 5e-324])),
    "another unit": lambda c, r: _motion(c, lambda d: d * r.choice([57.3, 1e3, 1e-3, -1.0, 10.0])),
    "noise": lambda c, r: _motion(c, lambda d: d + r.normal(0.0, r.choice([0.003, 0.03, 0.1]), d.shape)),
    "step": lambda c, r: _motion(c, lambda d: d + r.uniform(-0.3, 0.3, d.shape[1])),
    "oscillation": lambda c, r: _motion(c, lambda d: d + 0.1 * (-1.0) ** np.arange(len(d))[:, None]),
    "ramp": lambda c, r: _motion(c, lambda d: d + np.outer(np.arange(len(d)) / len(d), r.uniform(-1, 1, d.shape[1]))),
    "backwards": lambda c, r: _motion(c, lambda d: d[::-1]),
    "constant": lambda c, r: _motion(c, lambda d: np.broadcast_to(d[0], d.shape)),
    "gripper": lambda c, r: {"data": np.hstack([c.data[:, :-1], r.uniform(-1.0, 2.0, (len(c.data), 1))])},
    "stamp": lambda c, r: {"observed_at_s": c.observed_at_s - r.uniform(-1.0, 2.0)},
    "stamp not finite": lambda c, r: {"observed_at_s": r.choice([np.nan, np.inf, -np.inf])},
    "instruction": lambda c, r: {"instruction_id": max(c.instruction_id + int(r.integers(-1, 2)), 0)},
    "sequence": lambda c, r: {"sequence": max(c.sequence + int(r.integers(-5, 6)), 0)},
    "writer": lambda c, r: {"writer_id": int(r.integers(0, 100))},
    "contract": lambda c, r: {"contract_hash": "0" * 64},
    "space": lambda c, r: {"space": ActionSpace(3 - int(c.space))},
    "row length": lambda c, r: {"dt_s": float(r.choice([0.0, -0.05, np.nan, 0.005, 5.0]))},
    "rows": lambda c, r: {"data": c.data[: r.integers(0, max(len(c.data), 1))]},
    "columns": lambda c, r: {"data": c.data[:, : r.integers(1, max(c.data.shape[1], 2))]},
    "one dimension": lambda c, r: {"data": c.data.reshape(-1)},
    "committed rows": lambda c, r: {"committed_rows": int(r.integers(-2, 40))},
    "confidence": lambda c, r: {"confidence": float(r.choice([np.nan, -1.0, 2.0]))},
    "done": lambda c, r: {"done_probability": float(r.choice([np.nan, -1.0, 2.0, 1.0]))},
    "source": lambda c, r: {"source": Source(int(r.integers(len(Source))))},
    "replayed": lambda c, r: {},  # an older one instead, see `Story.strange`
}  # fmt: skip


class CalmStory(Story):
    """What a story needs to get somewhere: rearmed and instructed again at once, the policy on, and good joints."""

    def random_tick(self) -> None:
        if self.rng.random() < 0.03:
            super().random_tick()
            return
        inputs = {"speed_mode": SpeedMode(self.reduced, self.now_s) if self.permits else None}
        if self.decisions[-1].latched or self.decisions[-1].reason.value == "no_progress":
            inputs["rearms"] = ("r",)
        if not self.decisions[-1].instruction_id:
            inputs["instructs"] = (("i", "pick the cube", 0),)
        self.policy_on = self.joints_on = True
        self.tick(**inputs)


class FoldingStory(CalmStory):
    """The policy proposes joint positions anywhere: through the arm and every singularity."""

    reach_m = 2.0  # half the width of the workspace box about the first tool position

    def __init__(self, rng: np.random.Generator) -> None:
        action = dataclasses.replace(panda().action, space=ActionSpace.JOINT_POSITION, cols=panda().n_joints + 1)
        p = panda_kinematics().points(panda().poses.ready_rad)[0]
        box = dataclasses.replace(panda().workspace, lower_m=p - self.reach_m, upper_m=p + self.reach_m)
        super().__init__(rng, contract=dataclasses.replace(panda(), action=action, workspace=box))
        self.goal_q, self.speed_rad_s = self.q, 0.8

    def make_chunk(self, **changes) -> Chunk:
        limits, action = self.contract.limits, self.contract.action
        if self.rng.random() < 0.05 or np.abs(self.goal_q - self.q).max() < 0.01:
            goal = self.rng.uniform(limits.q_lo_rad, limits.q_hi_rad)
            keep = self.rng.random(7) < self.rng.choice([0.0, 0.5, 0.8])  # the whole arm, or the wrist
            self.goal_q = np.where(keep, self.q, goal)
            if self.rng.random() < 0.5:
                self.goal_q[5] = limits.q_lo_rad[5]  # the hand on the forearm
            self.speed_rad_s = self.rng.choice([0.2, 0.5, 1.0])
        way = self.goal_q - self.q
        share = self.speed_rad_s * action.dt_s * np.arange(1, action.rows + 1) / max(np.abs(way).max(), 1e-9)
        rows = self.q + np.minimum(share, 1.0)[:, None] * way
        data = np.hstack([rows, np.full((action.rows, 1), self.opening)])
        return super().make_chunk(**({"data": data} | changes))


class BoxedStory(FoldingStory):
    """The same in a narrow box."""

    reach_m = 0.1


class ChunkStory(CalmStory):
    """Every second chunk is strange."""

    def make_chunk(self, **changes) -> Chunk:
        if self.rng.random() < 0.1:
            self.goal_p = self.rng.uniform([0.2, -0.5, 0.0], [0.8, 0.5, 0.7])
            self.speed_m_s = self.rng.choice([0.05, 0.3, 1.0])
        chunk = super().make_chunk(**changes)
        return self.strange(chunk) if self.rng.random() < 0.5 else chunk


KINDS: dict[str, type[Story]] = {"any": Story, "folding": FoldingStory, "boxed": BoxedStory, "chunks": ChunkStory}


@dataclass
class Told:
    """What a story came to."""

    ticks: int = 0
    strange: Counter[str] = field(default_factory=Counter)  # chunks sent, by what was done to them
    accepted: int = 0  # chunks
    reasons: Counter[str] = field(default_factory=Counter)  # ticks with each reason
    violation: str = ""


def play(kind: str, seed: int, ticks: int) -> Told:
    """One story from start-up. A violation ends it and is told."""
    story, told = KINDS[kind](np.random.default_rng(seed)), Told()
    try:
        story.arm()
        story.instruct()
        while story.invariants.ticks < ticks:
            story.random_tick()
    except Violation as violation:
        told.violation = f"{kind}, seed {seed}, tick {story.invariants.ticks}: {violation}"
    told.ticks, told.strange = story.invariants.ticks, story.sent
    told.accepted = story.invariants.chunks
    told.reasons = Counter(decision.reason.value for decision in story.decisions)
    return told
