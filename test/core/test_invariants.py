"""The eight invariants of the safety specification (section 6) on every tick of random stories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits, panda, panda_kinematics
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ros.core.collision import HOLD_M, SelfCollision
from vla_ros.core.decision import Decision, SpeedMode
from vla_ros.core.lookahead import SINGULAR_HOLD, WORKSPACE_TOLERANCE_M
from vla_ros.core.rules import Reason
from vla_ros.core.types import ActionSpace, Chunk, Severity

pytestmark = pytest.mark.unit
TICKS = 350
RAMP_S = 0.45  # longest stop, plus a tick


class Story(Loop):
    """A loop to which things happen. Same seed, same story."""

    def begin(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.executed: list[tuple[float, float, int, int]] = []  # (now, observed at, its instruction, the open one)
        accept = self.supervisor._executor.accept

        def spy(now_s: float, chunk: Chunk, instruction_id: int, *rest) -> None:
            accept(now_s, chunk, instruction_id, *rest)
            self.executed.append((now_s, chunk.observed_at_s, chunk.instruction_id, instruction_id))

        self.supervisor._executor.accept = spy
        self.old_chunks: list[Chunk] = []
        self.permits, self.reduced = bool(seed % 2), False  # whether anybody speaks about speed at all

    def strange_chunk(self) -> Chunk:
        chunk = self.make_chunk()
        data = chunk.data.copy()
        kind = self.rng.integers(0, 7)
        if kind == 0:
            data[self.rng.integers(0, 16), self.rng.integers(0, 7)] = self.rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 1:
            data[:, :6] *= self.rng.choice([57.3, 1e3, 1e-3, -1.0, 1e300])
        elif kind == 2:
            data[:, :6] += self.rng.normal(0.0, 0.1, (16, 6))
        elif kind == 3:
            return dataclasses.replace(chunk, observed_at_s=self.now_s - self.rng.uniform(-1.0, 2.0))
        elif kind == 4:
            return dataclasses.replace(chunk, instruction_id=chunk.instruction_id + self.rng.integers(-1, 2))
        elif kind == 5 and self.old_chunks:
            return self.old_chunks[self.rng.integers(0, len(self.old_chunks))]
        self.old_chunks.append(chunk)
        return dataclasses.replace(chunk, data=data)

    def random_tick(self) -> None:
        rng, inputs = self.rng, {}
        if rng.random() < 0.008:
            inputs["interrupts"] = int(rng.integers(1, 4))
        if rng.random() < 0.08:
            inputs["rearms"] = ("r",)
        if rng.random() < 0.02:
            inputs["instructs"] = (("i", str(rng.choice(["pick the cube", "", "put it down", "a\nb"])), 0),)
        if rng.random() < 0.004:
            inputs["closes"] = (self.instruction_id,)
        if rng.random() < 0.004:
            inputs["home"] = ("h",)
        if rng.random() < 0.01:
            inputs["retreats"] = ("b",)
        if rng.random() < 0.01:
            self.reduced = not self.reduced
        if self.permits and rng.random() < 0.9:
            inputs["speed_mode"] = SpeedMode(self.reduced, self.now_s)
        if rng.random() < 0.03 and self.instruction_id:
            inputs["chunks"] = (self.strange_chunk(),)
        if rng.random() < 0.01:
            self.goal_p = rng.uniform([0.15, -0.6, -0.05], [0.85, 0.6, 0.75])
            self.speed_m_s = rng.choice([0.05, 0.3, 1.0])
        self.policy_on ^= bool(rng.random() < (0.005 if self.policy_on else 0.05))
        self.joints_on ^= bool(rng.random() < (0.003 if self.joints_on else 0.1))
        self.latency_s = rng.choice([0.03, 0.08, 0.3])
        self.done_probability = float(rng.random() < 0.3)
        dt = rng.choice(
            [0.01, 0.0005, 0.003, 0.014, 0.02, 0.06, 0.12, 0.0], p=[0.8, 0.05, 0.05, 0.04, 0.03, 0.01, 0.01, 0.01]
        )
        self.tick(float(dt), **inputs)
        if "interrupts" in inputs:
            self.interrupted_s = self.now_s


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_story_breaks_an_invariant(seed: int) -> None:
    story = Story()
    story.begin(seed)
    story.interrupted_s = -1e9
    story.arm()
    story.instruct()
    stopped_s = held_s = changed_s = -1e9
    for _ in range(TICKS):
        before, n_executed = story.decisions[-1], len(story.executed)
        story.random_tick()
        decision = story.decisions[-1]
        now = story.now_s
        # 5: severity falls only by its rule
        if before.severity >= Severity.STOP > decision.severity:
            assert any(reply.token == "r" and reply.accepted for reply in decision.replies)
        fell = before.severity is Severity.HOLD and decision.severity < Severity.HOLD
        if fell and before.reason is not Reason.INSTRUCTION_CHANGED:
            assert now - held_s >= 0.5 - 1e-9
            assert len(story.executed) > n_executed or decision.instruction_id == 0
        if decision.severity >= Severity.STOP and before.severity < Severity.STOP:
            stopped_s = now
        if decision.severity is Severity.HOLD and before.severity is not Severity.HOLD:
            held_s = now
        # 6: constant in STOP after the ramp
        if decision.severity >= Severity.STOP and before.severity >= Severity.STOP and now - stopped_s > 2 * RAMP_S:
            assert (decision.command.q_rad == before.command.q_rad).all() and not decision.command.qd_rad_s.any()
        # 8: nothing older than the last interrupt or instruction change
        for _, observed_s, own, opened in story.executed[n_executed:]:
            assert own == opened and observed_s > max(story.interrupted_s, changed_s)
        if decision.instruction_id != before.instruction_id:
            changed_s = now
        assert 0.0 < decision.scale <= 1.0 and np.isfinite(decision.tool_speed_m_s)
        assert decision.command.gripper_width_m in (0.0, 0.08)
    assert_stream_inside_limits(story)


class FoldingStory(Story):
    """The policy proposes joint positions anywhere: through the arm and every singularity, and out of a narrow box."""

    def __init__(self, boxed: bool) -> None:
        action = dataclasses.replace(panda().action, space=ActionSpace.JOINT_POSITION, cols=panda().n_joints + 1)
        p, reach = panda_kinematics().points(panda().poses.ready_rad)[0], 0.1 if boxed else 2.0
        box = dataclasses.replace(panda().workspace, lower_m=p - reach, upper_m=p + reach)
        super().__init__(contract=dataclasses.replace(panda(), action=action, workspace=box))
        self.goal_q, self.speed_rad_s = self.q, 0.8

    def random_tick(self) -> None:
        """Calmer than others: it has to get somewhere."""
        if self.rng.random() < 0.03:
            super().random_tick()
            return
        inputs = {"speed_mode": SpeedMode(self.reduced, self.now_s) if self.permits else None}
        if self.decisions[-1].latched:
            inputs["rearms"] = ("r",)
        if not self.decisions[-1].instruction_id:
            inputs["instructs"] = (("i", "pick the cube", 0),)
        self.policy_on = self.joints_on = True
        self.tick(**inputs)

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


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_story_brings_the_arm_to_itself_out_of_the_box_into_a_singularity_or_above_its_speed(seed: int) -> None:
    story = FoldingStory(boxed=seed % 3 == 0)
    story.begin(seed)
    distance, kinematics = SelfCollision(panda(), panda_kinematics()).distance, panda_kinematics()
    box = story.contract.workspace
    story.arm()
    story.instruct()
    capped_s = -1e9
    for k in range(2 * TICKS):
        cap = story.decisions[-1].speed_cap_m_s
        story.random_tick()
        decision: Decision = story.decisions[-1]
        q, v = decision.command.q_rad, decision.command.qd_rad_s
        # 7: within the ramp of the cap's fall
        capped_s = story.now_s if decision.speed_cap_m_s < cap else capped_s
        if story.now_s - capped_s > 2 * RAMP_S:
            assert kinematics.speeds(q, v).max() <= decision.speed_cap_m_s + 1e-9
        if k % 5 == 0:
            assert distance(q) >= HOLD_M - 0.005
            assert kinematics.condition(q) <= SINGULAR_HOLD + 3.0
            p = kinematics.points(q)[0]
            assert (np.maximum(box.lower_m - p, p - box.upper_m) <= WORKSPACE_TOLERANCE_M + 0.007).all()
    assert_stream_inside_limits(story)


def test_the_same_story_twice_gives_the_same_commands() -> None:
    streams = []
    for _ in range(2):
        story = Story()
        story.begin(7)
        story.arm()
        story.instruct()
        for _ in range(150):
            story.random_tick()
        streams.append(story.stream()[1])
    assert (streams[0] == streams[1]).all()
