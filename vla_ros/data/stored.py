"""How a camera's image and an observation are stored: serialised messages (CDR) in and out, without ROS.

rosbags reads a field of bytes where it lies; rclpy makes an array of it, and another on the way out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_ros.core.contract import Camera
from vla_ros.core.errors import Invalid
from vla_ros.core.observation import decode_image
from vla_ros.data.images import Coding
from vla_ros.data.ros_schema import schema

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
OBSERVATION = "vla_ros/msg/Observation"


@functools.cache
def types() -> Typestore:
    """Of the installed definitions."""
    store = get_typestore(Stores.EMPTY)
    for kind in (IMAGE, COMPRESSED_IMAGE, OBSERVATION):
        found = get_types_from_msg(schema(kind).text, kind)
        store.register({name: fields for name, fields in found.items() if name not in store.fielddefs})
    return store


def read(serialised: bytes, kind: str) -> Any:
    """A message whose fields of bytes are views of `serialised`. Raises `Invalid`."""
    try:
        return types().deserialize_cdr(serialised, kind)
    except Exception as error:  # the reader raises whatever a wrong length makes Python raise
        raise Invalid("message", f"{len(serialised)} bytes", f"a {kind} ({type(error).__name__}: {error})") from error


def compress(camera: Camera, coding: Coding, serialised: bytes) -> bytes:
    """sensor_msgs/Image -> CompressedImage, of whatever size: whether it fits the contract is for the audit to say.
    Raises `Invalid` for what is no image."""
    image = read(serialised, IMAGE)
    camera = dataclasses.replace(camera, width_px=image.width, height_px=image.height)
    rgb = decode_image(camera, image.encoding, image.height, image.width, image.step, memoryview(image.data))
    data = np.frombuffer(coding.encode(rgb), dtype=np.uint8)
    stored = types().types[COMPRESSED_IMAGE](header=image.header, format=coding.format, data=data)
    return bytes(types().serialize_cdr(stored, COMPRESSED_IMAGE))


def without_pixels(serialised: bytes) -> bytes:
    """An observation's index: stamps, sequence, size and joints. The pixels can be made again from the cameras."""
    observation = read(serialised, OBSERVATION)
    for image in observation.images:
        image.data = np.empty(0, dtype=np.uint8)
    return bytes(types().serialize_cdr(observation, OBSERVATION))
