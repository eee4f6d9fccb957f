"""The newest joint state of a fast stream, decoded when it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.observation import header_stamp_ns
from vla_ros.core.types import JointSample
from vla_ros.nodes import conversions
from vla_ros.nodes.runtime import ShellNode


class JointSource:
    """Joint states come at 250 to 1,000 Hz and are used at 100 Hz or less. `newest` from one thread."""

    def __init__(self, node: ShellNode, contract: Contract, heard: Callable[[], None] = lambda: None) -> None:
        """`heard` is called in the executor's thread after each message."""
        self._heard = heard
        self._node = node
        self._reader = JointStateReader(contract)
        self._lock = threading.Lock()
        self._waiting: tuple[bytes, float] | None = None  # serialised, and the steady time of its receipt
        self._sample: JointSample | None = None
        self.stamp_ns = 0  # of the sample that `newest` returned last
        node.subscribe_raw(JointState, contract.arm.joint_state_topic, "joint_states", self._keep)

    def _keep(self, serialised: bytes) -> None:
        with self._lock:
            self._waiting = (serialised, time.monotonic())
        self._heard()

    @property
    def waiting_stamp_ns(self) -> int:
        """ROS time [ns] of the message that `newest` would decode; 0 when none has come since. Raises `Invalid`."""
        with self._lock:
            waiting = self._waiting
        return header_stamp_ns(waiting[0]) if waiting is not None else 0

    def newest(self) -> JointSample | None:
        """The newest valid sample; one that is refused is counted, and counts as missing."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            try:
                message = deserialize_message(waiting[0], JointState)
                self._sample = conversions.joint_sample(message, self._reader, waiting[1])
                self.stamp_ns = conversions.stamp_ns(message.header.stamp)
            except Invalid as error:
                self._node.count("rejected joint states")
                self._node.log_slowly("joint states", f"joint states: {error}")
        return self._sample
