"""What the recorder makes of a message before it is stored, and what it listens to."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage

from vla_ros.core import contract as contracts
from vla_ros.core.errors import Invalid
from vla_ros.data.images import Coding, decode
from vla_ros.data.ros_schema import schema
from vla_ros.msg import CameraImage, Observation
from vla_ros.nodes import conversions, qos
from vla_ros.nodes.recorded_topics import compress, kind_name, sources, without_pixels

pytestmark = pytest.mark.unit
STAMP = conversions.to_stamp(1_700_000_000_123_456_789)


@pytest.fixture(scope="module")
def contract():
    return contracts.load("panda")


def picture(height=48, width=64):
    return (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3)


def test_image_becomes_a_compressed_one_of_the_same_header_whatever_its_size(contract):
    raw = serialize_message(conversions.rgb_image(picture(), "camera_scene", STAMP))
    stored = deserialize_message(compress(contract.cameras[0], Coding("png"), raw), CompressedImage)
    assert np.array_equal(decode(bytes(stored.data)), picture())
    assert (stored.header.frame_id, stored.header.stamp) == ("camera_scene", STAMP)
    assert stored.format == "rgb8; png compressed bgr8"


def test_driver_that_sends_bgr_is_stored_with_the_colours_it_meant(contract):
    image = conversions.rgb_image(np.ascontiguousarray(picture()[:, :, ::-1]), "camera_scene", STAMP)
    image.encoding = "bgr8"
    stored = deserialize_message(
        compress(contract.cameras[0], Coding("png"), serialize_message(image)), CompressedImage
    )
    assert np.array_equal(decode(bytes(stored.data)), picture())


@pytest.mark.parametrize("wrong", [{"encoding": "yuv422"}, {"height": 0}, {"step": 7}, {"width": 60_000}])
def test_image_that_is_none_is_refused(contract, wrong):
    image = conversions.rgb_image(picture(), "camera_scene", STAMP)
    for name, value in wrong.items():
        setattr(image, name, value)
    with pytest.raises(Invalid):
        compress(contract.cameras[0], Coding(), serialize_message(image))


def test_observation_keeps_everything_but_its_pixels():
    images = [
        CameraImage(name=name, stamp=STAMP, height=48, width=64, data=conversions.bytes_field(picture()))
        for name in ("scene", "wrist")
    ]
    whole = Observation(stamp=STAMP, sequence=7, contract_hash="ab", images=images, gripper_width=0.04)
    whole.position = conversions.doubles_field(np.arange(7.0))
    stored = without_pixels(serialize_message(whole))
    assert len(stored) < 400
    index = deserialize_message(stored, Observation)
    assert [(i.name, i.stamp, i.height, i.width, len(i.data)) for i in index.images] == [
        ("scene", STAMP, 48, 64, 0),
        ("wrist", STAMP, 48, 64, 0),
    ]
    assert (index.sequence, list(index.position), index.gripper_width) == (7, list(range(7)), 0.04)


def test_every_recorded_topic_has_its_own_name_an_installed_type_and_a_row_in_the_qos_table(contract):
    heard = sources(contract, Coding())
    assert len({source.name for source in heard}) == len(heard)
    for source in heard:
        kind = kind_name(source.stored or source.kind)
        assert schema(kind).name == kind
        assert qos.recorded(source.stream).depth >= 10
        assert qos.described(source.stream)["depth"] == qos.TABLE[source.stream].depth


def test_what_the_graph_latches_or_asks_in_time_is_recorded_without_asking_for_deadlines():
    assert qos.recorded("safe_command").deadline.nanoseconds in (0, qos.offered("image").deadline.nanoseconds)
    assert qos.described("safe_command")["deadline"] == {"sec": 0, "nsec": 40_000_000}
    assert qos.described("safety_state")["durability"] == "transient_local"


def test_camera_info_lies_beside_the_image_and_says_how_the_picture_was_taken():
    assert conversions.camera_info_topic("camera/scene/image_raw") == "camera/scene/camera_info"
    assert conversions.camera_info_topic("image") == "camera_info"
    info = conversions.camera_info(48, 64, 50.0, "camera_scene", STAMP)
    assert (info.height, info.width, info.header.frame_id) == (48, 64, "camera_scene")
    point = np.array([0.1, -0.2, 1.0])
    u, v, w = info.k.reshape(3, 3) @ point
    assert (u / w, v / w) == pytest.approx((32.0 + 5.0, 24.0 - 10.0))
    assert np.allclose(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
    assert serialize_message(info)
