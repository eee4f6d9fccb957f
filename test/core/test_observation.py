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
from vla_ros.core.observation import ENCODINGS, ObservationBuilder, decode_image, prepare_image
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
