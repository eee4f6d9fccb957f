"""Perception: camera images and joint states in, observations out. No motion decisions here."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

from sensor_msgs.msg import Image

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.observation import ObservationBuilder, decode_image
from vla_ros.msg import Observation, PerceptionStatus
from vla_ros.nodes import conversions
from vla_ros.nodes.joint_source import JointSource
from vla_ros.nodes.runtime import ShellNode, run

STATUS_CHECK_S, STATUS_PERIOD_S = 0.02, 0.05  # our choice: two ticks of the supervisor; a quarter of its timeout


class PerceptionNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("perception")
        self.timer("status", STATUS_CHECK_S, self._say)

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._builder = ObservationBuilder(contract)
        self._joints = JointSource(self, contract, self._on_joints)
        self._used_at_s = 0.0
        self._observations = self.publisher(Observation, "observation", "observation")
        self._statuses = self.publisher(PerceptionStatus, "perception_status", "perception_status")
        self._said, self._said_at_s = "", 0.0
        for camera in contract.cameras:
            self.subscribe(Image, camera.topic, "image", functools.partial(self._on_image, camera))

    def _on_joints(self) -> None:
        if not self._builder.wants_joints(self._joints.waiting_stamp_ns):
            return
        sample = self._joints.newest()
        if sample is not None and sample.measured_at_s > self._used_at_s:
            self._used_at_s = sample.measured_at_s
            self._builder.add_joints(sample, self._joints.stamp_ns)

    def _on_image(self, camera: Camera, message: Image) -> None:
        rgb = decode_image(
            camera, message.encoding, message.height, message.width, message.step, memoryview(message.data)
        )
        stamp_ns = conversions.stamp_ns(message.header.stamp)
        self._builder.add_image(camera.name, rgb, stamp_ns, self.ros_now_ns(), time.monotonic())
        self.count(f"images {camera.name}")
        observation = self._builder.take(time.monotonic()) if self.active else None
        if observation is not None:
            self._observations.publish(conversions.observation_message(observation))
            self.count("observations")

    def _say(self) -> None:
        """The verdict on the cameras: at once when it changes, and often enough to be missed when this process dies."""
        if not self.active:
            return
        now_s = time.monotonic()
        status = self._builder.status(now_s)
        if status.reason == self._said and now_s - self._said_at_s < STATUS_PERIOD_S:
            return
        self._said, self._said_at_s = status.reason, now_s
        self._statuses.publish(conversions.perception_status_message(status, self.clocks.stamp(now_s)))

    def health(self) -> Mapping[str, object]:
        ages = self._builder.ages_s(time.monotonic())
        return {f"image_age_ms {name}": f"{age_s * 1e3:.0f}" for name, age_s in ages.items()}


def main() -> None:
    run(PerceptionNode, shared_memory=True)  # raw images


if __name__ == "__main__":
    main()
