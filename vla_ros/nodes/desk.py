"""Where operators' requests wait for their answers: services and actions that block, off the node's own executor.

A coroutine that awaits an answer in rclpy is polled without a pause: while one waited, the supervisor's executor
delivered neither joint states nor interrupts (measured: silent for seconds). Here each request has a thread instead.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor

THREADS = 6  # our choice: requests that may wait at the same time; an instruct waits 4 s at most
LEAVE_S = 1.0  # our choice: so long a desk that closes waits for the answers under way, and again for its thread


class Desk:
    """A second node with threads of its own. Handlers may block; none of them touches the first node's executor."""

    def __init__(self, name: str, namespace: str) -> None:
        self.node = rclpy.create_node(name, namespace=namespace, enable_rosout=False, start_parameter_services=False)
        self.group = ReentrantCallbackGroup()
        self._executor = MultiThreadedExecutor(num_threads=THREADS)
        self._executor.add_node(self.node)
        self._open = True
        self._running = 0  # handlers
        self._idle = threading.Condition()
        self._thread = threading.Thread(target=self._spin, name="desk", daemon=True)

    def start(self) -> None:
        """After the endpoints have been made."""
        self._thread.start()

    def serve(self, kind: type, name: str, callback: Any) -> None:
        self.node.create_service(kind, name, self._counted(callback), callback_group=self.group)

    def run(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """In a thread of the desk, where it may block."""
        self._executor.create_task(self._counted(callback), *arguments)

    def _counted(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The same, plain or a coroutine function: the executor asks which it is."""
        if inspect.iscoroutinefunction(callback):

            async def wait_for(*arguments: Any) -> Any:
                with self._one_more():
                    return await callback(*arguments)

            return wait_for

        def run(*arguments: Any) -> Any:
            with self._one_more():
                return callback(*arguments)

        return run

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _spin(self) -> None:
        while self._open and rclpy.ok():
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except ExternalShutdownException:
                self._open = False
            except Exception as error:  # noqa: BLE001  one request that failed (its client may be gone) is not the end
                self.node.get_logger().error(f"a request was not answered: {error!r}")

    def close(self) -> None:
        """Lets answers under way be given, and leaves after `LEAVE_S` without those that are not."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, LEAVE_S)
        self._open = False
        self._thread.join(timeout=LEAVE_S)
        self._executor.shutdown(timeout_sec=0.0, wait_for_threads=False)
        self.node.destroy_node()
