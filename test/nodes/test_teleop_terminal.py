"""`vla teleop` in a terminal, and how it ends. A stage stands in for the graph: no arm, nothing that must be fast."""

import os
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy")

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger
from terminal import Terminal

from vla_ros import paths
from vla_ros.cli.live import free_domain
from vla_ros.core import contract as contracts
from vla_ros.msg import ActionChunk, SafetyState
from vla_ros.nodes import conversions, qos
from vla_ros.srv import Instruct

pytestmark = pytest.mark.process
WAIT_S = 60.0  # a machine that has too much to do
PERIOD_S = 0.02


class Stage:
    """An arm that stands, and a supervisor that gives everybody what they ask for; in a thread of its own."""

    def __init__(self):
        self.domain, self.context = free_domain(), Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.contract = contracts.load("panda")
        self.node = rclpy.create_node("stage", namespace="vla", context=self.context)
        self.chunks, self.asked, self.stops = [], [], 0
        self.driven, self.instruction_id, self.latched = False, 0, False
        made = {
            name: self.node.create_publisher(kind, name, qos.offered(name))
            for name, kind in (("joint_states", JointState), ("safety_state", SafetyState), ("teleoperated", Bool))
        }
        self._publish = {name: publisher.publish for name, publisher in made.items()}
        self.node.create_subscription(ActionChunk, "teleop_chunk", self.chunks.append, qos.requested("action_chunk"))
        self.node.create_subscription(Empty, "interrupt", self._stop, qos.requested("interrupt"))
        self.node.create_service(SetBool, "teleoperate", self._teleoperate)
        self.node.create_service(Instruct, "instruct", self._instruct)
        for name in ("rearm", "home"):
            self.node.create_service(Trigger, name, lambda request, response: response)
        self.node.create_timer(PERIOD_S, self._say)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._open = True
        self._thread.start()

    def _spin(self):
        while self._open:
            self._executor.spin_once(timeout_sec=0.1)

    def _say(self):
        c = self.contract
        now = conversions.to_stamp(self.node.get_clock().now().nanoseconds)
        self._publish["joint_states"](
            conversions.joint_state(c, c.poses.ready_rad, np.zeros(c.n_joints), c.gripper.open_m, now)
        )
        phase = "stopped" if self.latched else "moving" if self.instruction_id else "idle"
        said = {"phase": phase, "latched": self.latched, "instruction_id": self.instruction_id}
        self._publish["safety_state"](SafetyState(stamp=now, severity=3 * self.latched, **said))
        self._publish["teleoperated"](Bool(data=self.driven))

    def _stop(self, message):
        self.stops += 1
        self.latched, self.instruction_id = True, 0

    def _teleoperate(self, request, response):
        self.asked.append(request.data)
        self.driven, response.success = request.data, True
        return response

    def _instruct(self, request, response):
        self.asked.append(request.text)
        self.instruction_id, response.accepted, response.instruction_id = 5, True, 5
        return response

    def close(self):
        self._open = False
        self._thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def stage():
    paths.set_ros_environment()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def person(stage):
    argv = [sys.executable, "-m", "vla_ros.cli.main", "teleop", "--text", "wander about"]
    terminal = Terminal(argv, os.environ | {"ROS_DOMAIN_ID": str(stage.domain)})
    until(terminal, lambda: b"take over" in terminal.shown and not terminal.echoes, "no key help")
    until(terminal, lambda: stage.asked == [True], "not taken over", "t")
    until(terminal, lambda: stage.asked == [True, "wander about"], "not begun", "\r")
    until(terminal, lambda: stage.chunks, "nothing is proposed")
    yield terminal
    terminal.close()


def until(terminal, condition, what, key="", again_s=5.0):
    """Waits; the key is pressed once, and again after a while: what it asks for may not have been offered yet."""
    deadline_s, pressed_s = time.monotonic() + WAIT_S, -again_s
    while not condition():
        now_s = time.monotonic()
        assert now_s < deadline_s and terminal.process.poll() is None, f"{what}\n{terminal.shown[-3000:].decode()}"
        if key and now_s - pressed_s >= again_s:
            pressed_s = now_s
            terminal.press(key)
        time.sleep(PERIOD_S)


def ahead_m(stage):
    """Where the newest chunk leads."""
    chunk = stage.chunks[-1]
    return np.array(chunk.data).reshape(chunk.rows, -1)[-1, 0]


def test_keys_lead_and_stop_the_arm_and_ctrl_c_hands_it_back(stage, person):
    until(person, lambda: ahead_m(stage) > 0.005, "the key does not lead", "w", again_s=0.05)
    until(person, lambda: stage.stops and stage.latched, "no stop", " ")
    person.press("\x03")
    assert person.ended() == 0 and person.as_it_was
    assert stage.asked == [True, "wander about", False]


def test_connection_that_breaks_hands_the_arm_back(stage, person):
    person.hang_up()
    person.ended()
    assert stage.asked == [True, "wander about", False]
