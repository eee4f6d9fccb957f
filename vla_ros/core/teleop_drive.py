"""When a person's hand is heard: from keys, gamepad, joint states and the supervisor's word to what is proposed, or to
nothing. Also the stop that is repeated until it is seen to work, and the heartbeat. Time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_ros.core.contract import Contract
from vla_ros.core.teleop import CHUNK_PERIOD_S, Teleoperation
from vla_ros.core.teleop_input import Keys, Pad
from vla_ros.core.types import FloatArray, JointSample, require_finite

PERIOD_S = 0.05  # our choice: keys and sticks are looked at so often
STOP_FOR_S = 1.0  # our choice: the stop is repeated until the supervisor shows it, so long at most (fault D4)
STATE_OLD_S = 1.0  # our choice: ten periods of SafetyState; whoever does not hear the supervisor proposes nothing


@dataclass(frozen=True, slots=True)
class Word:
    """What the supervisor says: fields of msg/SafetyState, and the steady time of its receipt."""

    at_s: float = -math.inf
    instruction_id: int = 0
    phase: str = ""
    latched: bool = False


class Driver:
    """One thread. `now_s` is the steady clock."""

    def __init__(self, contract: Contract, hand: Teleoperation, pad: Pad) -> None:
        self.hand, self.keys, self.pad = hand, Keys(), pad
        self.word = Word()
        self.in_control = False  # the supervisor listens to this hand
        self._joints_old_s = contract.timeouts.joint_state_s
        self._proposed_s = self._stop_until_s = self._beat_s = -math.inf
        self._stamp_ns = 0

    def told(self, in_control: bool) -> None:
        """Who drives, as the supervisor says it."""
        if self.in_control and not in_control:
            self.hand.let_go()
        self.in_control = in_control

    # ------------------------------------------------------------------------------------------ motion

    def propose(self, now_s: float, joints: JointSample | None, stamp_ns: int) -> FloatArray | None:
        """(rows, cols) as in msg/ActionChunk for the open instruction, relative to the pose of `joints`, which have
        ROS time `stamp_ns`; None: nothing is to be said now. Raises `Invalid`, and the target stands."""
        require_finite("now_s", now_s)
        if joints is None or not now_s - joints.measured_at_s <= self._joints_old_s:
            return None  # who does not know where the arm is says nothing
        if not self._may_move(now_s):
            self.hand.anchor(now_s, joints)
            return None
        if self.word.phase == "moving":
            self.hand.move(now_s, self.keys.twist(now_s) + self.pad.twist(now_s), joints)
        else:  # held, or not under way yet: a chunk that stands lets it go on from where it is
            self.hand.anchor(now_s, joints)
        if stamp_ns <= self._stamp_ns or now_s - self._proposed_s < CHUNK_PERIOD_S - PERIOD_S / 2.0:
            return None
        self._stamp_ns, self._proposed_s = stamp_ns, now_s
        return self.hand.chunk(joints)

    def _may_move(self, now_s: float) -> bool:
        word = self.word
        heard = now_s - word.at_s <= STATE_OLD_S
        return self.in_control and word.instruction_id > 0 and not word.latched and heard

    # ------------------------------------------------------------------------------------------ stop, heartbeat

    def stop(self, now_s: float) -> None:
        """Whoever calls this has sent the first one."""
        self._stop_until_s = now_s + STOP_FOR_S

    def rearmed(self) -> None:
        """A stop that is still being repeated must not meet it."""
        self._stop_until_s = -math.inf

    def stop_again(self, now_s: float) -> bool:
        """True: the stop has not been seen to work, and is due once more."""
        if self.word.latched:
            self._stop_until_s = -math.inf
        return now_s < self._stop_until_s

    def beat(self, now_s: float, period_s: float, attended: bool) -> bool:
        """True: a heartbeat is due. Somebody is there: at a terminal (`attended`), or with a gamepad that is heard."""
        due = now_s - self._beat_s >= period_s and (attended or self.pad.alive(now_s))
        if due:
            self._beat_s = now_s
        return due
