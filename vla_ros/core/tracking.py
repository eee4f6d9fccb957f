"""Is the arm where it was told to be (C5)? One promise of the arm's response, for supervisor and arm controller."""

from __future__ import annotations

import math

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.limits import MotionState
from vla_ros.core.types import FloatArray

TRACKING_RAD, TRACKING_FOR_S = 0.1, 0.05  # C5
MODEL_FACTOR = 3.0  # C5: times the lag that the contract's actuation delay explains
FLOOR_RAD = 0.05  # choice: a loaded machine adds 20 ms to each hop, and a finger on the table bends the arm
RECENT_S = 0.2  # choice: the arm still lags after the command has slowed down


class TrackingWatch:
    """One thread."""

    def __init__(self, contract: Contract) -> None:
        self._delay_s = contract.arm.actuation_delay_s
        self._fastest = np.zeros(contract.n_joints)
        self._before_s = -math.inf
        self.reset()

    def reset(self) -> None:
        self._good_s = math.inf  # when the arm was last seen in its place; inf: not looked at yet
        self._fastest[:] = 0.0

    def lost(self, now_s: float, command: MotionState, q_measured: FloatArray) -> bool:
        """True once every sample of the last 50 ms was too far away."""
        dt_s = min(max(now_s - self._before_s, 0.0), RECENT_S)
        self._before_s = now_s
        self._fastest = np.maximum(np.abs(command.v), self._fastest * (1.0 - dt_s / RECENT_S))
        allowed = np.minimum(TRACKING_RAD, FLOOR_RAD + MODEL_FACTOR * self._delay_s * self._fastest)
        good = bool((np.abs(command.q - q_measured) <= allowed).all())
        if good or math.isinf(self._good_s):
            self._good_s = now_s
        return now_s - self._good_s > TRACKING_FOR_S
