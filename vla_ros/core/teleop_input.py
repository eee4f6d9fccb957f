"""Keys and gamepads: which says what. Motion by a twist as long as somebody holds it, everything else by acts.

A terminal tells no key's release, so a key moves the arm for KEY_HOLD_S, and goes on while the keyboard repeats it. A
gamepad moves it while its deadman button is held. Whoever falls silent asks for nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_ros.core.errors import Invalid
from vla_ros.core.teleop import Twist
from vla_ros.core.types import require_finite

KEY_HOLD_S = 0.2  # choice: longer than the period of a slow keyboard's repetition (92 ms on a Linux console)
JOY_STALE_S = 0.3  # choice: six periods of joy_node's repetition (autorepeat_rate 20 Hz)
DEADZONE = 0.1  # choice: worn sticks rest this far from their middle
AXIS_SLACK = 0.01  # drivers round
AXES = ("x", "y", "z", "roll", "pitch", "yaw")  # order of a mapping; base frame: forward, left, up


class Act(enum.Enum):
    """Done once, when a key or button goes down."""

    CONTROL = "take over, hand back"
    TASK = "begin the task, or it is done"
    GRIP = "open or close the hand"
    FASTER = "faster"
    SLOWER = "slower"
    FRAME = "axes of base or tool"
    STOP = "STOP"
    REARM = "rearm after a stop"
    HOME = "move to the home pose"
    RECORD = "record an episode"
    KEEP = "keep it: it succeeded"
    FAILED = "keep it: it failed"
    DISCARD = "discard it"


MOTION_KEYS: dict[str, tuple[str, float]] = {
    "w": ("x", 1.0), "s": ("x", -1.0), "a": ("y", 1.0), "d": ("y", -1.0), "q": ("z", 1.0), "e": ("z", -1.0),
    "j": ("roll", 1.0), "l": ("roll", -1.0), "i": ("pitch", 1.0), "k": ("pitch", -1.0),
    "u": ("yaw", 1.0), "o": ("yaw", -1.0),
    "up": ("x", 1.0), "down": ("x", -1.0), "left": ("y", 1.0), "right": ("y", -1.0),
    "page up": ("z", 1.0), "page down": ("z", -1.0),
}  # fmt: skip
ACT_KEYS: dict[str, Act] = {
    "space": Act.STOP, "r": Act.REARM, "t": Act.CONTROL, "enter": Act.TASK, "g": Act.GRIP, "+": Act.FASTER,
    "-": Act.SLOWER, "b": Act.FRAME, "h": Act.HOME, "n": Act.RECORD, "y": Act.KEEP, "f": Act.FAILED,
    "backspace": Act.DISCARD,
}  # fmt: skip
_ESCAPES = {  # of xterm and its kin, and of the Linux console
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[5~": "page up", "[6~": "page down",
}  # fmt: skip
_NAMES = {" ": "space", "\n": "enter", "\r": "enter", "\x7f": "backspace", "\x08": "backspace", "=": "+", "_": "-"}


def keys_of(text: str) -> list[str]:
    """Names of the keys behind what a terminal sent. Capitals are their small letters; unknown sequences are no key."""
    found, at = [], 0
    while at < len(text):
        if text[at] == "\x1b":
            end = at + 1
            while end < len(text) and text[end] in "[O0123456789;" and end - at < 8:
                end += 1
            sequence = text[at + 1 : end + 1]
            if sequence in _ESCAPES:
                found.append(_ESCAPES[sequence])
            at = end + 1
            continue
        key = _NAMES.get(text[at], text[at].lower())
        if key in MOTION_KEYS or key in ACT_KEYS:
            found.append(key)
        at += 1
    return found


class Keys:
    """Which keys of motion are held, as far as a terminal tells."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def press(self, key: str, now_s: float) -> Act | None:
        """A key's act, or None for one of motion. Raises `Invalid` for a key without a meaning."""
        require_finite("now_s", now_s)
        if key in ACT_KEYS:
            return ACT_KEYS[key]
        if key not in MOTION_KEYS:
            raise Invalid("key", key, ", ".join((*MOTION_KEYS, *ACT_KEYS)))
        self._until_s[key] = now_s + KEY_HOLD_S
        return None

    def release(self) -> None:
        self._until_s.clear()

    def twist(self, now_s: float) -> Twist:
        shares = dict.fromkeys(AXES, 0.0)
        for key, until_s in self._until_s.items():
            if now_s < until_s:
                axis, share = MOTION_KEYS[key]
                shares[axis] += share
        values = np.clip([shares[axis] for axis in AXES], -1.0, 1.0)
        return Twist(values[:3], values[3:])


@dataclass(frozen=True, slots=True)
class PadMapping:
    """Indices into `axes` and `buttons` of sensor_msgs/Joy; -1: not on this pad. Default: what joy_node says of an
    Xbox-like pad on Linux (left stick x and y, right stick yaw and z, cross roll and pitch; hold LB to move)."""

    axes: Mapping[str, int] = field(default_factory=lambda: {"x": 1, "y": 0, "z": 4, "roll": 6, "pitch": 7, "yaw": 3})
    scale: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(AXES, 1.0))  # -1 turns an axis around
    deadman: int = 4
    acts: Mapping[Act, int] = field(
        default_factory=lambda: {
            Act.CONTROL: 7, Act.TASK: 3, Act.GRIP: 0, Act.FASTER: 5, Act.SLOWER: 2, Act.STOP: 1, Act.REARM: 6
        }
    )  # fmt: skip
    deadzone: float = DEADZONE

    def validate(self) -> None:
        """Every violation at once."""
        wrong = []
        for name in AXES:
            if not (isinstance(self.axes.get(name), int) and -1 <= self.axes[name] <= 63):
                wrong.append(f"axis.{name} is {self.axes.get(name)!r}, allowed: -1 (none) to 63")
            if not -1.0 <= self.scale.get(name, math.nan) <= 1.0:
                wrong.append(f"scale.{name} is {self.scale.get(name)!r}, allowed: -1 to 1")
        if not 0 <= self.deadman <= 63:
            wrong.append(f"button.deadman is {self.deadman}, allowed: 0 to 63; nothing moves without it")
        for act, button in self.acts.items():
            if not -1 <= button <= 63:
                wrong.append(f"button.{act.name.lower()} is {button}, allowed: -1 (none) to 63")
        used = [self.deadman, *(b for b in self.acts.values() if b >= 0)]
        if len(set(used)) != len(used):
            wrong.append(f"buttons are {used}, allowed: each button once")
        if not 0.0 <= self.deadzone <= 0.5:
            wrong.append(f"deadzone is {self.deadzone:g}, allowed: 0 to 0.5")
        if wrong:
            raise Invalid("gamepad mapping", len(wrong), "0 violations: " + "; ".join(wrong))


class Pad:
    """The newest message of a gamepad. One thread."""

    def __init__(self, mapping: PadMapping) -> None:
        mapping.validate()
        self._mapping = mapping
        self._twist, self._heard_s = Twist.rest(), -math.inf
        self._down: tuple[int, ...] | None = None  # buttons of the message before

    def alive(self, now_s: float) -> bool:
        return 0.0 <= now_s - self._heard_s <= JOY_STALE_S

    def twist(self, now_s: float) -> Twist:
        return self._twist if self.alive(now_s) else Twist.rest()

    def take(self, axes: Sequence[float], buttons: Sequence[int], now_s: float) -> list[Act]:
        """`now_s`: steady clock at receipt. The acts whose buttons have just gone down; rearming and taking over need
        the deadman as well. Raises `Invalid`, and asks for nothing, when the message is not what the mapping needs."""
        m = self._mapping
        self._twist = Twist.rest()
        require_finite("joy.axes", list(axes))
        needed = max(m.axes.values())
        if not len(axes) > needed:
            raise Invalid("joy.axes", len(axes), f"more than {needed}, or other parameters axis.*")
        needed = max((m.deadman, *m.acts.values()))
        if not len(buttons) > needed:
            raise Invalid("joy.buttons", len(buttons), f"more than {needed}, or other parameters button.*")
        if not all(-1.0 - AXIS_SLACK <= a <= 1.0 + AXIS_SLACK for a in axes):
            raise Invalid("joy.axes", list(axes), "-1 to 1 each")
        before, self._down = self._down, tuple(buttons)
        self._heard_s = now_s
        if buttons[m.deadman]:
            values = np.array([self._share(axes, name) for name in AXES])
            self._twist = Twist(values[:3], values[3:])
        if before is None or len(before) != len(buttons):  # what was down when the pad was plugged in was not pressed
            return []
        pressed = [act for act, b in m.acts.items() if b >= 0 and buttons[b] and not before[b]]
        return [a for a in pressed if a not in (Act.REARM, Act.CONTROL) or buttons[m.deadman]]

    def _share(self, axes: Sequence[float], name: str) -> float:
        """Without the dead zone, continuous at its edge."""
        index = self._mapping.axes[name]
        if index < 0:
            return 0.0
        value = min(max(float(axes[index]), -1.0), 1.0) * self._mapping.scale[name]
        beyond = max(abs(value) - self._mapping.deadzone, 0.0) / (1.0 - self._mapping.deadzone)
        return math.copysign(beyond, value)
