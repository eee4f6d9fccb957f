"""Plausible but wrong (B9): a policy that shakes the arm, or keeps it busy without getting anywhere."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from vla_ros.core.types import FloatArray

SHAKE_RAD_S = 0.05  # choice: slower reversals are noise around a standing arm
SHAKE_COUNT, SHAKE_WINDOW_S = 5, 1.0  # choice: reversals of one joint; manipulation makes two or three a second
SHAKE_HOLD_AFTER_S = 0.5  # choice: so long the arm is only slowed; B9 asks for a reaction within 1 s
SLOW_SCALE = 0.3  # B9
STILL_RAD, STILL_FOR_S = 0.02, 10.0  # B9; 0.02 rad is about a centimetre of the tool


class ProgressWatch:
    """Looks at what is commanded while chunks are followed. One thread."""

    def __init__(self, n_joints: int) -> None:
        self._n = n_joints
        self.reset()

    def reset(self) -> None:
        """Nothing is followed, or the operator has seen it."""
        self._sign = np.zeros(self._n)
        self._turns: list[deque[float]] = [deque(maxlen=SHAKE_COUNT) for _ in range(self._n)]
        self._calm_s = math.inf  # newest time without shaking
        self._here_q: FloatArray | None = None
        self._here_s, self._width_m = math.inf, math.nan
        self.shaking = self.lost = False

    def take(self, now_s: float, q: FloatArray, v: FloatArray, width_m: float) -> None:
        sign = np.where(np.abs(v) > SHAKE_RAD_S, np.sign(v), self._sign)
        for joint in np.flatnonzero(sign * self._sign < 0.0):
            self._turns[int(joint)].append(now_s)
        self._sign = sign
        self.shaking = any(len(t) == SHAKE_COUNT and now_s - t[0] <= SHAKE_WINDOW_S for t in self._turns)
        if not self.shaking or math.isinf(self._calm_s):
            self._calm_s = now_s
        moved = self._here_q is None or float(np.abs(q - self._here_q).max()) > STILL_RAD or width_m != self._width_m
        if moved:
            self._here_q, self._here_s, self._width_m = q, now_s, width_m
        self.lost = now_s - self._calm_s >= SHAKE_HOLD_AFTER_S or now_s - self._here_s >= STILL_FOR_S
