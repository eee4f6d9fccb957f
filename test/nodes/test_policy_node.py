"""The policy node's own part of real-time chunking: one node in this process, no graph, a runtime that stays put."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy

from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation
from vla_ros.msg import Instruction, SafetyState
from vla_ros.nodes import conversions
from vla_ros.nodes.policy import PolicyNode
from vla_ros.policy.runtime import PolicyOutput

pytestmark = pytest.mark.process
DOMAIN_ID = 102  # nobody else here uses it; tests of the graph have their own
DEADLINE_S = 30.0
SPACING_NS = 140_000_000


class Runtime:
    """Wants to stay, and remembers how many rows it was given."""

    precision, checkpoint_hash = "none", "0" * 64

    def __init__(self, contract):
        self.manifest = SimpleNamespace(contract_hash=contract.hash, prefix_max=6, name="stay")
        self.given = []

    def judge(self, text):
        """Knows every sentence."""

    def infer(self, observation, text, rng, prefix=None):
        if observation.sequence > 1 or text:  # not the blank one of the self-test
            self.given.append(0 if prefix is None else len(prefix))
        return PolicyOutput(np.zeros((16, 7)), 0.0, 1.0, 0.0)


class Bench:
    """Feeds one node and collects what it sends."""

    def __init__(self, contract, node, runtime):
        self.contract, self.node, self.runtime, self.sent = contract, node, runtime, []
        node._chunks = SimpleNamespace(publish=self.sent.append)
        self.stamp_ns = node.ros_now_ns() - 1_000_000_000  # so the delay is about a second, and the prefix the longest
        self.sequence = 0

    def instruct(self, instruction_id):
        self.node._on_instruction(Instruction(instruction_id=instruction_id, text="stay"))

    def state(self, severity, phase):
        self.node._on_state(SafetyState(severity=severity, phase=phase))

    def chunk(self):
        """The chunk for one more observation."""
        c, count = self.contract, len(self.sent)
        self.stamp_ns += SPACING_NS
        self.sequence += 1
        images = {camera.name: np.zeros((camera.policy_px,) * 2 + (3,), dtype=np.uint8) for camera in c.cameras}
        observation = Observation(
            self.stamp_ns, self.sequence, c.hash, images, c.poses.ready_rad, np.zeros(c.n_joints), 0.08
        )
        self.node._on_observation(conversions.observation_message(observation))
        ends_s = time.monotonic() + DEADLINE_S
        while len(self.sent) == count:
            assert time.monotonic() < ends_s, f"no chunk; counters {self.node.counters}"
            time.sleep(0.005)
        return self.sent[-1]


@pytest.fixture
def bench(monkeypatch):
    contract = contracts.load("panda")
    runtime = Runtime(contract)
    monkeypatch.setattr(PolicyNode, "load", lambda self, path, contract: runtime)
    rclpy.init(domain_id=DOMAIN_ID)
    node = PolicyNode()
    try:
        node.configure(contract)
        node.activate()
        yield Bench(contract, node, runtime)
        node.deactivate()
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_chunk_begins_with_the_running_one_until_a_stop_or_a_new_instruction(bench):
    bench.instruct(3)
    bench.state(SafetyState.SEVERITY_RUN, "moving")
    assert bench.chunk().committed_rows == 0  # nothing runs yet
    assert bench.chunk().committed_rows == 6
    bench.state(SafetyState.SEVERITY_STOP, "stopped")
    assert bench.chunk().committed_rows == 0
    bench.state(SafetyState.SEVERITY_RUN, "moving")
    assert bench.chunk().committed_rows == 6
    bench.instruct(4)
    chunk = bench.chunk()
    assert (chunk.instruction_id, chunk.committed_rows) == (4, 0)
    assert bench.chunk().committed_rows == 6
    bench.instruct(0)  # closed: an interrupt or a cancel
    bench.instruct(5)
    assert bench.chunk().committed_rows == 0
    assert bench.runtime.given[-7:] == [chunk.committed_rows for chunk in bench.sent]
