"""Images and joint states become one observation, or nothing with a reason (faults A3, A4, A6, A8)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import panda
from hypothesis import given
from hypothesis import strategies as st

from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.observation import ENCODINGS, ObservationBuilder, decode_image, header_stamp_ns, prepare_image
from vla_ros.core.types import JointSample

pytestmark = pytest.mark.unit
CAMERA = panda().cameras[0]
MS = 1_000_000  # ns
T0_NS = 1_700_000_000_000_000_000


def picture(seed: int = 0, size: int = 224) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_a_picture_of_twice_the_size_becomes_the_rounded_mean_of_two_by_two() -> None:
    rgb = picture()
    mean = np.floor(rgb.reshape(112, 2, 112, 2, 3).mean((1, 3)) + 0.5)
    assert (prepare_image(rgb, CAMERA) == mean).all()


def test_a_crop_that_does_not_divide_is_resized_by_areas_and_keeps_the_mean() -> None:
    camera = dataclasses.replace(CAMERA, crop_px=(7, 5, 201, 201))
    rgb = picture()
    out = prepare_image(rgb, camera)
    assert out.shape == (112, 112, 3)
    assert out.mean() == pytest.approx(rgb[5:206, 7:208].mean(), abs=0.1)
    flat = np.full((224, 224, 3), 77, dtype=np.uint8)
    assert (prepare_image(flat, camera) == 77).all()


def test_every_encoding_gives_the_same_colours() -> None:
    rgb = picture()
    four = np.dstack([rgb, np.full((224, 224), 9, np.uint8)])
    wires = {"rgb8": rgb, "bgr8": rgb[..., ::-1], "rgba8": four, "bgra8": four[..., [2, 1, 0, 3]]}
    for encoding, wire in wires.items():
        step = wire.shape[1] * wire.shape[2]
        assert (decode_image(CAMERA, encoding, 224, 224, step, wire.tobytes()) == rgb).all(), encoding


def test_padding_at_the_end_of_each_row_is_ignored() -> None:
    rgb = picture()
    padded = np.concatenate([rgb.reshape(224, 672), np.zeros((224, 8), np.uint8)], axis=1)
    assert (decode_image(CAMERA, "rgb8", 224, 224, 680, padded.tobytes()) == rgb).all()


@given(
    encoding=st.sampled_from([*ENCODINGS, "", "16UC1", "jpeg"]),
    height=st.integers(-5, 30_000),
    width=st.integers(-5, 30_000),
    step=st.integers(-5, 100_000),
    length=st.integers(0, 2000),
)
def test_no_malformed_image_is_taken_and_none_raises_anything_but_invalid(
    encoding: str, height: int, width: int, step: int, length: int
) -> None:
    with pytest.raises(Invalid):
        decode_image(CAMERA, encoding, height, width, step, b"x" * length)


def sample(at_s: float = 0.0) -> JointSample:
    return JointSample(panda().poses.ready_rad.copy(), np.zeros(7), 0.08, at_s)


def filled(skew_ms: int = 0, joint_skew_ms: int = 0) -> ObservationBuilder:
    builder = ObservationBuilder(panda())
    builder.add_joints(sample(), T0_NS - joint_skew_ms * MS)
    builder.add_image("scene", picture(), T0_NS, T0_NS, 10.0)
    builder.add_image("wrist", picture(), T0_NS - skew_ms * MS, T0_NS, 10.0)
    return builder


def test_an_observation_has_every_camera_in_contract_order_and_the_stamp_of_the_newest_image() -> None:
    builder = filled(skew_ms=30)
    assert builder.ready
    observation = builder.build(10.01)
    observation.validate(7)
    assert list(observation.images) == ["scene", "wrist"] and observation.stamp_ns == T0_NS
    assert observation.contract_hash == panda().hash and observation.sequence == 1
    assert not builder.ready  # the same frames make no second observation


def test_the_joint_sample_nearest_to_the_image_is_taken() -> None:
    builder = filled()
    other = dataclasses.replace(sample(), q_rad=np.full(7, 0.5))
    builder.add_joints(other, T0_NS + 40 * MS)
    assert (builder.build(10.0).q_rad == sample().q_rad).all()


@pytest.mark.parametrize("skew", [{"skew_ms": 90}, {"joint_skew_ms": 90}], ids=["cameras", "joints"])
def test_streams_out_of_step_by_more_than_80_ms_make_no_observation(skew: dict) -> None:
    with pytest.raises(Invalid) as error:
        filled(**skew).build(10.0)
    assert error.value.reason == "skew"


def test_an_image_older_than_its_timeout_makes_no_observation() -> None:
    with pytest.raises(Invalid) as error:
        filled().build(10.25)
    assert error.value.reason == "image_stale"


@pytest.mark.parametrize("offset_ms", [-1000, 10_000, 0], ids=["old", "future", "same stamp again"])
def test_a_stamp_that_is_old_or_ahead_or_does_not_grow_is_refused(offset_ms: int) -> None:
    builder = filled()
    with pytest.raises(Invalid) as error:
        builder.add_image("scene", picture(), T0_NS + offset_ms * MS, T0_NS + (60 * MS if offset_ms else 0), 10.06)
    assert error.value.reason == "image_stamp"


def test_one_camera_that_is_silent_for_its_timeout_is_told_while_the_other_goes_on() -> None:  # A1
    builder = ObservationBuilder(panda())
    for k in range(8):
        at_ms = 66 * k
        stamp_ns, now_s = T0_NS + at_ms * MS, at_ms * 1e-3
        builder.add_joints(sample(), stamp_ns)
        for name in ("scene", "wrist") if k <= 4 else ("scene",):
            builder.add_image(name, picture(at_ms), stamp_ns, stamp_ns, now_s)
    last_s = 0.066 * 4
    assert builder.status(last_s + 0.199).reason == ""
    assert builder.status(last_s + 0.201).reason == "image_stale"


def test_joints_are_read_by_name_in_any_order() -> None:
    reader, names = JointStateReader(panda()), [*panda().joint_names, "panda_finger_joint1", "some_other_joint"]
    values = [*panda().poses.ready_rad, 0.04, 9.9]
    order = np.random.default_rng(1).permutation(len(names))
    shuffled = reader.read([names[i] for i in order], [values[i] for i in order], [0.1 * i for i in order], 1.0)
    assert (shuffled.q_rad == panda().poses.ready_rad).all() and shuffled.gripper_width_m == 0.08
    assert (shuffled.qd_rad_s == 0.1 * np.arange(7)).all()


@pytest.mark.parametrize("case", ["missing", "twice", "nan", "no velocity"])
def test_a_joint_state_that_is_not_whole_counts_as_missing(case: str) -> None:
    reader, names = JointStateReader(panda()), [*panda().joint_names, "panda_finger_joint1"]
    position, velocity = [*panda().poses.ready_rad, 0.04], [0.0] * 8
    if case == "missing":
        names, position, velocity = names[1:], position[1:], velocity[1:]
    elif case == "twice":
        names[1] = names[0]
    elif case == "nan":
        position[3] = float("nan")
    else:
        velocity = []
    with pytest.raises(Invalid):
        reader.read(names, position, velocity, 1.0)


def frames_taken(order: list[tuple[str, int]]) -> list[tuple[int, int]]:
    """Feeds (camera, stamp [ms]) as they arrive; the stamps [ms] of the pair in each observation."""
    builder, taken = ObservationBuilder(panda()), []
    newest: dict[str, int] = {}
    for name, at_ms in order:
        stamp_ns = T0_NS + at_ms * MS
        joints = JointSample(np.zeros(7), np.zeros(7), 0.04, 0.0)
        if builder.wants_joints(stamp_ns):
            builder.add_joints(joints, stamp_ns)
        builder.add_image(name, picture(at_ms), stamp_ns, stamp_ns, at_ms * 1e-3)
        newest[name] = at_ms
        if builder.take(at_ms * 1e-3) is not None:
            taken.append((newest["scene"], newest["wrist"]))
    return taken


def test_cameras_that_expose_together_are_paired_even_if_first_heard_between_two_frames() -> None:
    order = [("wrist", 0), *((name, 66 * k) for k in range(1, 6) for name in ("scene", "wrist"))]
    assert frames_taken(order)[1:] == [(66 * k, 66 * k) for k in range(2, 6)]
    lost = [(name, 66 * k) for k in range(8) for name in ("scene", "wrist") if (name, k) != ("wrist", 3)]
    assert frames_taken(lost)[-3:] == [(66 * k, 66 * k) for k in range(5, 8)]


@pytest.mark.parametrize("lag_ms", [0, 10, 33, 40])
def test_every_frame_of_cameras_with_a_fixed_lag_is_used(lag_ms: int) -> None:
    order = sorted(((k * 66 + lag * lag_ms, name) for k in range(12) for lag, name in ((0, "scene"), (1, "wrist"))))
    assert len(frames_taken([(name, at) for at, name in order])) >= 11


def test_a_joint_state_is_wanted_once_in_ten_milliseconds_of_its_own_stamps() -> None:
    builder, taken = ObservationBuilder(panda()), []
    for at_ms in range(0, 40, 2):
        if builder.wants_joints(T0_NS + at_ms * MS):
            builder.add_joints(JointSample(np.zeros(7), np.zeros(7), 0.04, 0.0), T0_NS + at_ms * MS)
            taken.append(at_ms)
    assert taken == [0, 10, 20, 30]


def test_stamp_of_a_serialised_message_is_read_without_decoding_it() -> None:
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState

    message = JointState()
    message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_000, 123_456_789
    assert header_stamp_ns(serialize_message(message)) == 1_700_000_000_123_456_789
    with pytest.raises(Invalid, match="12 bytes"):
        header_stamp_ns(b"\0\1\0\0")
