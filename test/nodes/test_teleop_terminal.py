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
from stage import Stage
from terminal import Terminal

from vla_ros import paths
from vla_ros.cli.live import free_domain
from vla_ros.srv import Record

pytestmark = pytest.mark.process
WAIT_S = 60.0  # a machine that has too much to do
PERIOD_S = 0.02


class Scene(Stage):
    """A stage that does as it is told, in a thread of its own."""

    def __init__(self):
        self.domain, self.context = free_domain(), Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        super().__init__(obeys=True, context=self.context)
        self.node.create_timer(PERIOD_S, self.say)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._open = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        while self._open:
            self._executor.spin_once(timeout_sec=0.1)

    def close(self):
        self._open = False
        self._thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def stage():
    paths.set_ros_environment()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    made = Scene()
    yield made
    made.close()


def at_terminal(stage, *arguments):
    argv = [sys.executable, "-m", "vla_ros.cli.main", "teleop", "--text", "wander about", *arguments]
    terminal = Terminal(argv, os.environ | {"ROS_DOMAIN_ID": str(stage.domain)})
    until(terminal, lambda: b"take over" in terminal.shown and not terminal.echoes, "no key help")
    return terminal


@pytest.fixture
def person(stage):
    terminal = at_terminal(stage)
    assert set(stage.recorder_asked) == {Record.Request.STATUS}, "it is known to hear before anything is done"
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
    until(person, lambda: stage.interrupts and stage.state.latched, "no stop", " ")
    person.press("\x03")
    assert person.ended() == 0 and person.as_it_was
    assert stage.asked == [True, "wander about", False]


def test_connection_that_breaks_hands_the_arm_back(stage, person):
    person.hang_up()
    person.ended()
    assert stage.asked == [True, "wander about", False]


def test_who_asks_to_drive_drives_also_where_another_person_has_not_handed_back(stage):
    stage.driven = True
    terminal = at_terminal(stage, "--take")
    try:
        until(terminal, lambda: stage.asked == ["wander about"], "not begun", "\r")
        until(terminal, lambda: stage.chunks, "nothing is proposed")
        assert stage.driven
    finally:
        terminal.close()
