"""Perception: camera images and joint states in, observations out. No motion decisions here."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

from sensor_msgs.msg import Image

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.observation import ObservationBuilder, decode_image
from vla_ros.msg import Observation
from vla_ros.nodes import conversions
from vla_ros.nodes.joint_source import JointSource
from vla_ros.nodes.runtime import ShellNode, run

JOINTS_HZ = 100.0  # our choice: an image is matched within 5 ms; the rest of a 500 Hz stream is not decoded


class PerceptionNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("perception")

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._builder = ObservationBuilder(contract)
        self._joints = JointSource(self, contract, self._on_joints)
        self._joints_at_s = self._used_at_s = 0.0
        self._observations = self.publisher(Observation, "observation", "observation")
        for camera in contract.cameras:
            self.subscribe(Image, camera.topic, "image", functools.partial(self._on_image, camera))

    def _on_joints(self) -> None:
        now_s = time.monotonic()
        if now_s - self._joints_at_s < 1.0 / JOINTS_HZ:
            return
        self._joints_at_s = now_s
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
        if self.active and self._builder.ready:
            self._observations.publish(conversions.observation_message(self._builder.build(time.monotonic())))
            self.count("observations")

    def health(self) -> Mapping[str, object]:
        ages = self._builder.ages_s(time.monotonic())
        return {f"image_age_ms {name}": f"{age_s * 1e3:.0f}" for name, age_s in ages.items()}


def main() -> None:
    run(PerceptionNode)


if __name__ == "__main__":
    main()
