"""Keys of a terminal and messages of a gamepad: what moves, what is done once, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ros.core.errors import Invalid
from vla_ros.core.teleop_input import (
    ACT_KEYS,
    JOY_STALE_S,
    KEY_HOLD_S,
    MOTION_KEYS,
    Act,
    Keys,
    Pad,
    PadMapping,
    keys_of,
)

pytestmark = pytest.mark.unit
AXES, BUTTONS = 8, 11


def pad_says(pad: Pad, now_s: float, axes: dict[int, float] | None = None, held: tuple[int, ...] = ()) -> list[Act]:
    values = [float((axes or {}).get(k, 0.0)) for k in range(AXES)]
    return pad.take(values, [int(k in held) for k in range(BUTTONS)], now_s)


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent, keys",
    [
        ("wW", ["w", "w"]),
        (" ", ["space"]),
        ("\r", ["enter"]),
        ("\x7f", ["backspace"]),
        ("\x1b[A\x1bOB\x1b[5~w", ["up", "down", "page up", "w"]),
        ("\x1b[1;5C", []),  # with a modifier: another key
        ("\x1b[15~\x1bOP", []),
        ("\x1b", []),
        ("=_", ["+", "-"]),
        ("z0ä\x00", []),
    ],
)
def test_what_a_terminal_sends_is_taken_for_keys(sent: str, keys: list[str]) -> None:
    assert keys_of(sent) == keys


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_whatever_a_terminal_sends_is_known_keys_or_none(sent: str) -> None:
    assert set(keys_of(sent)) <= MOTION_KEYS.keys() | ACT_KEYS.keys()


def test_no_key_means_two_things_and_every_act_has_one() -> None:
    assert not MOTION_KEYS.keys() & ACT_KEYS.keys()
    assert set(ACT_KEYS.values()) == set(Act)


def test_key_moves_for_a_moment_and_on_while_it_is_repeated() -> None:
    keys = Keys()
    assert keys.press("w", 10.0) is None
    assert keys.twist(10.1).linear.tolist() == [1.0, 0.0, 0.0]
    assert not keys.twist(10.0 + KEY_HOLD_S).linear.any()
    keys.press("w", 10.3)
    keys.press("a", 10.4)
    keys.press("u", 10.4)
    assert keys.twist(10.45).linear.tolist() == [1.0, 1.0, 0.0] and keys.twist(10.45).angular.tolist() == [0, 0, 1]
    keys.press("s", 10.45)
    assert keys.twist(10.46).linear.tolist() == [0.0, 1.0, 0.0]  # forward and back is neither
    keys.release()
    assert not keys.twist(10.46).linear.any()
    with pytest.raises(Invalid, match="key"):
        keys.press("z", 10.0)


# -- gamepad ---------------------------------------------------------------------------------------------------------


def test_stick_moves_only_while_the_deadman_is_held() -> None:
    pad = Pad(PadMapping())
    pad_says(pad, 1.0, {1: 1.0})
    assert not pad.twist(1.0).linear.any()
    pad_says(pad, 1.1, {1: 1.0, 3: -1.0}, held=(4,))
    assert pad.twist(1.1).linear.tolist() == [1.0, 0.0, 0.0] and pad.twist(1.1).angular.tolist() == [0.0, 0.0, -1.0]
    pad_says(pad, 1.2, {1: 1.0})
    assert not pad.twist(1.2).linear.any()


def test_pad_that_falls_silent_stops() -> None:
    pad = Pad(PadMapping())
    pad_says(pad, 1.0, {1: 1.0}, held=(4,))
    assert pad.twist(0.99 + JOY_STALE_S).linear.any() and pad.alive(0.99 + JOY_STALE_S)
    assert not pad.twist(1.01 + JOY_STALE_S).linear.any() and not pad.alive(1.01 + JOY_STALE_S)


def test_worn_stick_that_rests_beside_its_middle_moves_nothing_and_begins_gently() -> None:
    pad = Pad(PadMapping())
    shares = []
    for value in (0.09, -0.09, 0.11, 0.55, 1.0, -1.0):
        pad_says(pad, 1.0, {1: value}, held=(4,))
        shares.append(pad.twist(1.0).linear[0])
    assert shares == pytest.approx([0.0, 0.0, 0.011, 0.5, 1.0, -1.0], abs=1e-3)


def test_button_acts_once_when_it_goes_down_and_what_is_down_from_the_start_was_not_pressed() -> None:
    pad = Pad(PadMapping())
    assert pad_says(pad, 1.0, held=(1,)) == []
    assert pad_says(pad, 1.1) == []
    assert pad_says(pad, 1.2, held=(1, 0)) == [Act.GRIP, Act.STOP]
    assert pad_says(pad, 1.3, held=(1, 0)) == []


def test_taking_over_and_rearming_need_the_deadman_and_a_stop_does_not() -> None:
    pad = Pad(PadMapping())
    pad_says(pad, 1.0)
    assert pad_says(pad, 1.1, held=(1, 6, 7)) == [Act.STOP]
    pad_says(pad, 1.2, held=(4,))
    assert pad_says(pad, 1.3, held=(4, 6, 7)) == [Act.CONTROL, Act.REARM]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.2, -32767.0])
def test_axis_that_is_none_is_refused_and_stops(bad: float) -> None:
    pad = Pad(PadMapping())
    pad_says(pad, 1.0, {1: 1.0}, held=(4,))
    with pytest.raises(Invalid, match=r"joy\.axes"):
        pad_says(pad, 1.05, {2: bad}, held=(4,))
    assert not pad.twist(1.05).linear.any()


@pytest.mark.parametrize("axes, buttons, named", [(4, 11, "axis"), (8, 3, "button"), (0, 0, "axis")])
def test_pad_with_too_few_axes_or_buttons_is_refused_with_the_parameters_to_change(axes, buttons, named) -> None:
    with pytest.raises(Invalid, match=rf"other parameters {named}\."):
        Pad(PadMapping()).take([0.0] * axes, [0] * buttons, 1.0)


def test_mapping_is_checked_as_a_whole() -> None:
    good = PadMapping()
    good.validate()
    wrong = dataclasses.replace(
        good, axes={**good.axes, "x": 99}, scale={**good.scale, "y": float("nan")}, deadman=-1,
        acts={**good.acts, Act.GRIP: good.acts[Act.STOP]}, deadzone=0.9,
    )  # fmt: skip
    with pytest.raises(Invalid) as error:
        wrong.validate()
    for named in ("axis.x", "scale.y", "button.deadman", "each button once", "deadzone"):
        assert named in str(error.value)


def test_axis_can_be_turned_around_or_left_out() -> None:
    good = PadMapping()
    pad = Pad(dataclasses.replace(good, scale={**good.scale, "x": -0.5}, axes={**good.axes, "y": -1}))
    pad_says(pad, 1.0, {0: 1.0, 1: 1.0}, held=(4,))
    assert np.allclose(pad.twist(1.0).linear, [-0.444, 0.0, 0.0], atol=1e-3)
