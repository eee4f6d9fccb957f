"""Plausible but wrong (B9): a policy that shakes the arm, or keeps it busy without getting anywhere."""

from __future__ import annotations

import math

import numpy as np

from vla_ros.core.types import ActionSpace, Chunk, FloatArray

# Shaking is judged on what is proposed: the seams between chunks smooth most of it away (5 Hz and 6 cm become 0.2 rad/s
# without a reversal), and the command of a policy that hovers and plans anew reverses up to seven times a second.
SHAKE_M_S, SHAKE_RAD_S = 0.10, 0.4  # choice: slower reversals are noise; at half of it the shipped policy makes five
SHAKE_COUNT = 6  # choice: reversals in one chunk, 3.75 Hz at 0.8 s
SHAKE_HOLD_AFTER_S = 0.5  # choice: so long the arm is only slowed; B9 asks for a reaction within 1 s
_COUNTS = np.array([SHAKE_M_S] * 3 + [SHAKE_RAD_S] * 3)  # of tool-delta columns
SLOW_SCALE = 0.3  # B9
STILL_RAD, STILL_FOR_S = 0.02, 10.0  # B9; 0.02 rad is about a centimetre of the tool


def reversals(chunk: Chunk) -> int:
    """How often the most restless column of a chunk changes its direction, at a speed that counts."""
    rows = chunk.data[:, :-1]
    speed = (rows[1:] - rows[:-1]) / chunk.dt_s  # (rows - 1, cols - 1), without the gripper
    fast = np.abs(speed) > (_COUNTS if chunk.space is ActionSpace.TOOL_DELTA else SHAKE_RAD_S)
    forward = speed > 0.0
    turns = forward[1:] != forward[:-1]
    if not turns.any():  # most columns of most chunks need no closer look
        return 0
    most = 0
    for column in np.flatnonzero(fast.any(axis=0) & turns.any(axis=0)):
        direction = forward[fast[:, column], column]
        most = max(most, int((direction[1:] != direction[:-1]).sum()))
    return most


class ProgressWatch:
    """Looks at what is proposed and commanded while chunks are followed. One thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing is followed."""
        self._shaking_s = math.inf  # since when every chunk shakes
        self._here_q: FloatArray | None = None
        self._here_s, self._width_m = math.inf, math.nan
        self.shaking = self.lost = False

    def take_chunk(self, now_s: float, chunk: Chunk) -> None:
        self.shaking = reversals(chunk) >= SHAKE_COUNT
        self._shaking_s = min(self._shaking_s, now_s) if self.shaking else math.inf

    def take(self, now_s: float, q: FloatArray, width_m: float, patient: bool = False) -> None:
        """Last command: joints and opening. `patient`: a person proposes, who may stand still and think."""
        moved = self._here_q is None or float(np.abs(q - self._here_q).max()) > STILL_RAD or width_m != self._width_m
        if moved or patient:
            self._here_q, self._here_s, self._width_m = q, now_s, width_m
        self.lost = now_s - self._shaking_s >= SHAKE_HOLD_AFTER_S or now_s - self._here_s >= STILL_FOR_S
