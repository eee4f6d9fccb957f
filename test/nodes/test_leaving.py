"""Who is asked to leave goes: answers under way are given first, but nobody waits for those that never come."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

rclpy = pytest.importorskip("rclpy")

pytestmark = pytest.mark.process
DOMAIN_ID = "59"  # no graph of the other tests is there
SLOW = 3.0  # times an idle machine


@pytest.fixture
def desk(monkeypatch):
    from vla_ros.nodes.desk import Desk

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    rclpy.init(domain_id=int(DOMAIN_ID))
    desk = Desk("desk", "vla")
    desk.start()
    yield desk
    rclpy.try_shutdown()


def test_desk_that_closes_gives_the_answers_under_way_and_leaves_without_the_others(desk):
    begun, release, ended = threading.Semaphore(0), threading.Event(), []

    def handle(seconds):
        begun.release()
        release.wait(seconds)
        ended.append(seconds)

    desk.run(handle, 0.3)
    desk.run(handle, 60.0)
    assert begun.acquire(timeout=10.0) and begun.acquire(timeout=10.0)
    asked_s = time.monotonic()
    desk.close()
    assert time.monotonic() - asked_s < 2.0 * SLOW
    assert ended == [0.3]
    release.set()  # its thread goes


NODE = textwrap.dedent(
    """
    import threading
    from vla_ros.nodes.runtime import ShellNode, run

    class Stuck(ShellNode):
        def __init__(self):
            super().__init__("stuck")
        def configure(self, contract): pass
        def activate(self):
            threading.Thread(target=threading.Event().wait, name="waits for nobody").start()
            print("active", flush=True)
    run(Stuck)
    """
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_process_whose_thread_waits_for_nobody_is_gone_all_the_same(number):
    from vla_ros.nodes.runtime import GONE_S, LEAVE_TIMEOUT_S

    environment = {**os.environ, "ROS_DOMAIN_ID": DOMAIN_ID, "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}
    process = subprocess.Popen(
        [sys.executable, "-c", NODE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert any(line.strip() == "active" for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=(LEAVE_TIMEOUT_S + GONE_S) * SLOW)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "waits for nobody" in errors
