"""Messages and core types say the same thing, in both directions."""

import math

import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Float64MultiArray

from vla_ros.core import contract as contracts
from vla_ros.core.errors import Invalid
from vla_ros.core.types import ActionSpace, Command, CommandMode, Observation
from vla_ros.msg import ActionChunk, SafeCommand
from vla_ros.msg import Observation as ObservationMsg
from vla_ros.nodes import conversions, qos

pytestmark = pytest.mark.unit
ROS_NOW_NS = 1_800_000_000_123_456_789
STEADY_NOW_S = 5000.0


@pytest.fixture(scope="module")
def contract():
    return contracts.load("panda")


@pytest.fixture
def clocks():
    return conversions.ClockBridge(ROS_NOW_NS, STEADY_NOW_S)


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def chunk_message(data, **changes):
    facts = dict(
        stamp_ns=ROS_NOW_NS - 40_000_000,
        writer_id=2**63 - 1,
        instruction_id=3,
        sequence=9,
        contract_hash="a" * 64,
        space=ActionSpace.TOOL_DELTA,
        dt_s=0.05,
        inference_s=0.015,
        confidence=0.5,
        done_probability=0.25,
    )
    return conversions.chunk_message(data, **{**facts, **changes})


def test_stamp_becomes_an_age_on_the_steady_clock(clocks):
    stamp = conversions.to_stamp(ROS_NOW_NS - 40_000_000)
    assert clocks.steady_s(stamp, STEADY_NOW_S) == pytest.approx(STEADY_NOW_S - 0.040, abs=1e-9)


def test_stamp_from_the_future_has_age_zero(clocks):
    stamp = conversions.to_stamp(ROS_NOW_NS + 3_000_000_000)
    assert clocks.steady_s(stamp, STEADY_NOW_S) == STEADY_NOW_S


def test_jitter_between_the_clocks_is_ignored_and_a_step_is_followed(clocks):
    before = clocks.ros_ns(STEADY_NOW_S)
    clocks.observe(STEADY_NOW_S, ROS_NOW_NS + 1_000_000, STEADY_NOW_S + 1e-5)
    assert clocks.ros_ns(STEADY_NOW_S) == before
    clocks.observe(STEADY_NOW_S, ROS_NOW_NS + 3_600_000_000_000, STEADY_NOW_S + 1e-5)
    assert clocks.ros_ns(STEADY_NOW_S) == before + 3_600_000_000_000


def test_a_thread_that_waited_between_the_clocks_sees_no_step(clocks):
    before = clocks.ros_ns(STEADY_NOW_S)
    clocks.observe(STEADY_NOW_S, ROS_NOW_NS + 3_000_000, STEADY_NOW_S + 3e-3)
    assert clocks.ros_ns(STEADY_NOW_S) == before


def test_chunk_survives_the_wire(clocks):
    data = np.random.default_rng(0).normal(size=(16, 7))
    chunk = conversions.chunk(over_the_wire(chunk_message(data, committed_rows=3)), clocks, STEADY_NOW_S)
    chunk.validate(7)
    assert chunk.committed_rows == 3
    np.testing.assert_allclose(chunk.data, data, atol=1e-6)
    assert chunk.dt_s == 0.05  # not the float32 nearest to it
    assert (chunk.writer_id, chunk.instruction_id, chunk.sequence) == (2**63 - 1, 3, 9)
    assert chunk.observed_at_s == pytest.approx(STEADY_NOW_S - 0.040, abs=1e-9)


def test_nan_of_a_chunk_arrives_as_nan_and_validate_refuses_it(clocks):
    data = np.zeros((16, 7))
    data[3, 4] = math.nan
    chunk = conversions.chunk(over_the_wire(chunk_message(data)), clocks, STEADY_NOW_S)
    with pytest.raises(Invalid):
        chunk.validate(7)


@pytest.mark.parametrize("changes", [{"rows": 15}, {"cols": 8}, {"space": 0}, {"rows": 0, "cols": 0}])
def test_chunk_whose_sizes_do_not_add_up_is_refused(clocks, changes):
    message = chunk_message(np.zeros((16, 7)))
    for field, value in changes.items():
        setattr(message, field, value)
    with pytest.raises(Invalid):
        conversions.chunk(message, clocks, STEADY_NOW_S)


def test_command_survives_the_wire(clocks):
    q_rad, qd_rad_s = np.linspace(-1, 1, 7), np.linspace(0, 1, 7)
    command = Command(q_rad, qd_rad_s, 0.04, CommandMode.MOVE, 3, 17, 2**62, STEADY_NOW_S - 0.01)
    back = conversions.command(over_the_wire(conversions.command_message(command, clocks)), clocks, STEADY_NOW_S)
    np.testing.assert_array_equal(back.q_rad, command.q_rad)
    np.testing.assert_array_equal(back.qd_rad_s, command.qd_rad_s)
    assert back.at_s == pytest.approx(command.at_s, abs=1e-9)
    assert (back.mode, back.rearm_counter, back.sequence, back.writer_id) == (CommandMode.MOVE, 3, 17, 2**62)


def test_command_of_an_unknown_mode_is_refused(clocks):
    with pytest.raises(Invalid, match="mode"):
        conversions.command(SafeCommand(mode=9), clocks, STEADY_NOW_S)


def test_observation_survives_the_wire(contract):
    rng = np.random.default_rng(1)
    images = {c.name: rng.integers(0, 255, (c.policy_px, c.policy_px, 3), dtype=np.uint8) for c in contract.cameras}
    seen = Observation(ROS_NOW_NS, 5, contract.hash, images, np.arange(7.0), -np.arange(7.0), 0.03)
    back = conversions.observation(over_the_wire(conversions.observation_message(seen)), 7)
    assert list(back.images) == [c.name for c in contract.cameras]
    for name, pixels in images.items():
        np.testing.assert_array_equal(back.images[name], pixels)
    np.testing.assert_array_equal(back.q_rad, seen.q_rad)
    assert (back.stamp_ns, back.sequence, back.contract_hash) == (ROS_NOW_NS, 5, contract.hash)


def test_observation_with_a_short_image_is_refused():
    message = ObservationMsg(stamp=conversions.to_stamp(ROS_NOW_NS), sequence=1)
    from vla_ros.msg import CameraImage

    message.images = [CameraImage(name="scene", height=4, width=4, data=bytes(47))]
    with pytest.raises(Invalid, match="scene"):
        conversions.observation(message, 7)


def test_image_survives_the_wire():
    pixels = np.random.default_rng(2).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    message = over_the_wire(conversions.rgb_image(pixels, "camera_scene", conversions.to_stamp(ROS_NOW_NS)))
    np.testing.assert_array_equal(conversions.rgb_pixels(message), pixels)


def test_trajectory_is_read_by_name_not_by_order(contract):
    names = contract.joint_names
    message = over_the_wire(conversions.trajectory(names[::-1], np.arange(7.0), np.ones(7), 0.01))
    q_rad, _ = conversions.trajectory_end(message, names)
    np.testing.assert_array_equal(q_rad, np.arange(7.0)[::-1])


def test_trajectory_with_a_missing_joint_or_a_nan_is_refused(contract):
    names = contract.joint_names
    with pytest.raises(Invalid):
        conversions.trajectory_end(conversions.trajectory(names[:-1], np.zeros(6), np.zeros(6), 0.01), names)
    with pytest.raises(Invalid):
        conversions.trajectory_end(conversions.trajectory(names, np.full(7, np.nan), np.zeros(7), 0.01), names)


def test_grip_is_the_position_of_one_finger():
    message = conversions.grip(0.06)
    assert list(message.data) == [0.03]
    assert conversions.grip_width_m(message) == pytest.approx(0.06)
    with pytest.raises(Invalid):
        conversions.grip_width_m(Float64MultiArray(data=[math.nan]))


def test_deadline_is_requested_only_where_it_is_offered():
    for stream, row in qos.TABLE.items():
        if row.requested_ms is not None:
            assert row.offered_ms is not None, stream
            assert row.offered_ms <= row.requested_ms, stream


def test_too_long_a_chunk_does_not_get_on_the_wire():
    from rclpy.impl.implementation_singleton import rclpy_implementation

    message = ActionChunk()
    with pytest.raises((AssertionError, ValueError, rclpy_implementation.RMWError)):
        message.data = np.zeros(2000, dtype=np.float32).tolist()
        serialize_message(message)
