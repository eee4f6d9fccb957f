"""The observations of a recorded episode, made by the objects that make them live (`nodes/perception.py`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.observation import ObservationBuilder, decode_image, header_stamp_ns
from vla_ros.core.types import ByteArray, Observation
from vla_ros.data import images
from vla_ros.data.bag_reader import Bag, BagError, Stored, stamp_ns

NS = 1_000_000_000


def picture(bag: Bag, camera: Camera, message: Stored) -> tuple[ByteArray, int]:
    """(H, W, 3) uint8 rgb and its stamp [ns], from an Image or a CompressedImage. Raises `Invalid`, `BagError`."""
    m = bag.decode(message)
    if hasattr(m, "encoding"):
        rgb = decode_image(camera, m.encoding, m.height, m.width, m.step, memoryview(m.data))
    else:
        rgb = images.decode(memoryview(m.data))
    return rgb, stamp_ns(m.header.stamp)


class Perception:
    """`observations` yields them in order. `refused` counts pictures and joint states that were not taken."""

    def __init__(self, bag: Bag, contract: Contract) -> None:
        """Raises `BagError` when a camera or the joint states are missing."""
        self._bag = bag
        self._builder, self._reader = ObservationBuilder(contract), JointStateReader(contract)
        self.refused = 0
        wanted: dict[str, Callable[[Stored], Observation | None]] = {
            camera.topic: functools.partial(self._picture, camera) for camera in contract.cameras
        }
        wanted[contract.arm.joint_state_topic] = self._joint_state
        self._handlers: dict[str, Callable[[Stored], Observation | None]] = {}
        for name, handler in wanted.items():
            topic = bag.find(name)
            if topic is None or not bag.topics[topic].count:
                raise BagError(
                    f"{bag.folder}: no message on {name}; there are: {', '.join(bag.topics) or 'none at all'}"
                )
            self._handlers[topic] = handler

    def observations(self) -> Iterator[Observation]:
        for message in self._bag.messages(list(self._handlers)):
            try:
                observation = self._handlers[message.topic](message)
            except Invalid:
                self.refused += 1
                continue
            if observation is not None:
                yield observation

    def _picture(self, camera: Camera, message: Stored) -> Observation | None:
        rgb, stamp = picture(self._bag, camera, message)
        now_s = message.log_ns / NS
        self._builder.add_image(camera.name, rgb, stamp, message.log_ns, now_s)
        return self._builder.take(now_s)

    def _joint_state(self, message: Stored) -> None:
        stamp = header_stamp_ns(message.data)
        if self._builder.wants_joints(stamp):
            m = self._bag.decode(message)
            sample = self._reader.read(m.name, m.position, m.velocity, message.log_ns / NS, m.effort)
            self._builder.add_joints(sample, stamp)
