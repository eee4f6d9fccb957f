"""Where operators' requests wait for their answers: services and actions that block, off the node's own executor.

A coroutine that awaits an answer in rclpy is polled without a pause: while one waited, the supervisor's executor
delivered neither joint states nor interrupts (measured: silent for seconds). Here each request has a thread instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor

THREADS = 6  # our choice: requests that may wait at the same time; an instruct waits 4 s at most


class Desk:
    """A second node with threads of its own. Handlers may block; none of them touches the first node's executor."""

    def __init__(self, name: str, namespace: str) -> None:
        self.node = rclpy.create_node(name, namespace=namespace, enable_rosout=False, start_parameter_services=False)
        self.group = ReentrantCallbackGroup()
        self._executor = MultiThreadedExecutor(num_threads=THREADS)
        self._executor.add_node(self.node)
        self._open = True
        self._thread = threading.Thread(target=self._spin, name="desk", daemon=True)

    def start(self) -> None:
        """After the endpoints have been made."""
        self._thread.start()

    def serve(self, kind: type, name: str, callback: Any) -> None:
        self.node.create_service(kind, name, callback, callback_group=self.group)

    def run(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """In a thread of the desk, where it may block."""
        self._executor.create_task(callback, *arguments)

    def _spin(self) -> None:
        while self._open and rclpy.ok():
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except ExternalShutdownException:
                self._open = False
            except Exception as error:  # noqa: BLE001  one request that failed (its client may be gone) is not the end
                self.node.get_logger().error(f"a request was not answered: {error!r}")

    def close(self) -> None:
        self._open = False
        self._thread.join(timeout=1.0)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
