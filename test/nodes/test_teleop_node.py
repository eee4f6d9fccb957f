"""The node between keys and supervisor: what it says, when, and when it is silent. A stage stands in for the graph."""

import os
import time

import pytest

pytest.importorskip("rclpy")

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Joy
from stage import INSTRUCTION_ID, Stage

from vla_ros import paths
from vla_ros.cli.live import free_domain
from vla_ros.msg import SafetyState
from vla_ros.nodes.teleop import TeleopNode
from vla_ros.srv import Record

pytestmark = pytest.mark.unit
WAIT_S = 20.0


class Scene(Stage):
    """A stage that only answers, and the node, in one thread."""

    def __init__(self):
        super().__init__(obeys=False)
        self.hand = TeleopNode("pick up the red ball", "test")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.hand)
        self.hand.autostart()
        assert self.hand.active, self.hand.failure

    def until(self, condition, keys="", what="it"):
        """The graph goes on until it holds; meanwhile these keys are held down."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S:g} s; {self.hand.note}"
            for key in keys:
                self.hand.press(key)
            self.say()
            for _ in range(6):
                self.executor.spin_once(timeout_sec=0.002)

    def some_chunks(self, n=3, keys=""):
        """The newest of the next `n`, as rows."""
        self.chunks.clear()
        self.until(lambda: len(self.chunks) >= n, keys, f"{n} chunks")
        return np.array(self.chunks[-1].data).reshape(self.chunks[-1].rows, -1)

    def close(self):
        self.hand.release()
        self.hand.destroy_node()
        self.node.destroy_node()


@pytest.fixture(scope="module")
def stage():
    paths.set_ros_environment()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=free_domain())
    made = Scene()
    made.until(made.hand._teleoperate.service_is_ready, what="services")
    yield made
    made.close()
    rclpy.try_shutdown()


@pytest.fixture
def driving(stage):
    """The person has the arm, and an instruction is open."""
    stage.state, stage.driven = SafetyState(phase="moving", instruction_id=INSTRUCTION_ID), True
    stage.until(lambda: stage.hand.in_control and stage.hand.state.phase == "moving")
    return stage


def test_person_asks_for_the_arm_and_says_nothing_before_it_is_theirs(stage):
    stage.state, stage.driven = SafetyState(phase="moving", instruction_id=4), False
    stage.until(lambda: stage.hand.state is not None and stage.hand.state.instruction_id == 4)
    stage.hand.press("w")
    stage.asked.clear()
    stage.hand.press("t")
    assert not stage.chunks
    stage.until(lambda: stage.hand.in_control)
    assert stage.asked == [True]
    stage.some_chunks()
    stage.hand.press("t")
    stage.until(lambda: not stage.hand.in_control)
    assert stage.asked == [True, False]


def test_key_that_is_held_leads_the_tool_and_none_lets_it_stand(driving):
    assert driving.some_chunks(6, "w")[-1, 0] > 0.005
    newest = driving.chunks[-1]
    assert newest.instruction_id == INSTRUCTION_ID and newest.contract_hash == driving.contract.hash
    driving.some_chunks(6)
    standing = driving.some_chunks(1)
    assert np.abs(standing[-1] - standing[-4]).max() < 1e-6


def test_gamepad_leads_the_tool_while_its_deadman_is_held(driving):
    def stick(*held):
        driving.publish["joy"](Joy(axes=[0.0, -1.0, *[0.0] * 6], buttons=[int(k in held) for k in range(11)]))
        return len(driving.chunks) >= 12

    driving.chunks.clear()
    driving.until(lambda: stick(4))
    assert driving.hand.pad_alive and np.array(driving.chunks[-1].data).reshape(16, 7)[-1, 0] < -0.005


def test_arm_that_is_held_is_proposed_to_stand_and_a_stopped_one_nothing(driving):
    driving.state = SafetyState(severity=2, reason="workspace", phase="holding", instruction_id=INSTRUCTION_ID)
    driving.until(lambda: driving.hand.state.phase == "holding")
    assert np.abs(driving.some_chunks(4, "w")[:, :6]).max() < 1e-6
    driving.state = SafetyState(
        severity=3, reason="interrupt", latched=True, phase="stopped", instruction_id=INSTRUCTION_ID
    )
    driving.until(lambda: driving.hand.state.latched)
    driving.chunks.clear()
    ticks = []
    driving.until(lambda: ticks.append(1) or len(ticks) > 40, "w")
    assert not driving.chunks


def test_stop_is_sent_at_once_and_again_until_it_is_seen(driving):
    driving.interrupts = 0
    driving.hand.press("space")
    driving.until(lambda: driving.interrupts >= 2)
    driving.state = SafetyState(severity=3, reason="interrupt", latched=True, phase="stopped")
    driving.until(lambda: driving.hand.state.latched and not driving.hand.driver.stop_again(0.0))


def test_enter_begins_the_text_and_says_that_it_is_done(driving):
    driving.state = SafetyState(phase="idle")
    driving.until(lambda: driving.hand.state.phase == "idle")
    driving.asked.clear()
    driving.hand.press("enter")
    driving.until(lambda: driving.asked)
    assert driving.asked == ["pick up the red ball"]
    driving.state = SafetyState(phase="moving", instruction_id=INSTRUCTION_ID)
    driving.until(lambda: driving.hand.state.instruction_id == INSTRUCTION_ID)
    driving.some_chunks(1)
    assert driving.chunks[-1].done_probability == 0.0
    driving.hand.press("enter")
    driving.until(lambda: driving.chunks[-1].done_probability == 1.0)


def test_recorder_is_asked_until_it_answers_and_what_it_does_is_known(driving):
    """By then it hears the chunks: its client was made after their publisher."""
    driving.until(lambda: driving.hand.recorded)
    assert driving.hand.recording == "idle" and driving.recorder_asked[-1] == Record.Request.STATUS
    assert driving.hand._chunks.get_subscription_count() == 1
    driving.hand.press("n")
    driving.until(lambda: driving.hand.recording == "recording")
    asked = len(driving.recorder_asked)
    driving.some_chunks(6)
    assert len(driving.recorder_asked) == asked, "an answer is enough"
