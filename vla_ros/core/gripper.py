"""Gripper faults seen in the opening alone: fingers that do not move (C8), and an object that is gone (C9)."""

from __future__ import annotations

import math

from vla_ros.core.contract import Contract
from vla_ros.core.types import FloatArray

STUCK_FOR_S = 1.0  # C8
RETRIES_MAX = 2  # C8
MOVED_M = 0.003  # choice: less is no motion; a finger bends and an encoder has play
OBJECT_MIN_M = 0.008  # choice: fingers that end wider apart than this hold something
GRASPED_FOR_S = 0.2  # choice: so long has the opening been still
CARRIED_RAD = 0.15  # choice: an object counts as carried after this much motion; before that a grasp may still settle


class GripperWatch:
    """`stuck` and `dropped` are true in the update in which it happens. One thread.

    Fingers that stop on their way while closing look like a grasp: without a force that case cannot be told.
    """

    def __init__(self, contract: Contract) -> None:
        self._closed_m, self._open_m = contract.gripper.closed_m, contract.gripper.open_m
        self._wanted_m = math.nan
        self._instruction_id = 0
        self._start_m, self._since_s = math.nan, math.inf  # opening at the newest command; inf: already answered
        self._still_m, self._still_s = math.nan, math.inf
        self._grasp_q: FloatArray | None = None
        self._carried = False
        self.failures = 0  # of the open instruction
        self.stuck = self.dropped = False

    def retry(self) -> None:
        """The operator has seen it: look anew."""
        self._wanted_m = math.nan

    def take(self, now_s: float, wanted_m: float, width_m: float, q_command: FloatArray, instruction_id: int) -> None:
        if instruction_id != self._instruction_id:
            self._instruction_id, self.failures = instruction_id, 0
            self.retry()
        if wanted_m != self._wanted_m:
            self._wanted_m, self._start_m, self._since_s = wanted_m, width_m, now_s
            self._grasp_q, self._carried, self._still_s = None, False, math.inf
        self.stuck = self._is_stuck(now_s, width_m)
        if self.stuck:
            self._since_s = math.inf
            self.failures += 1
        self.dropped = self._is_dropped(now_s, width_m, q_command)

    def _is_stuck(self, now_s: float, width_m: float) -> bool:
        if abs(self._wanted_m - width_m) <= MOVED_M or abs(width_m - self._start_m) > MOVED_M:
            self._since_s = math.inf  # it is there, or on its way
        elif self._wanted_m < width_m < self._open_m - 2.0 * MOVED_M:
            self._since_s = math.inf  # closing on something that was between the fingers before
        return now_s - self._since_s >= STUCK_FOR_S

    def _is_dropped(self, now_s: float, width_m: float, q_command: FloatArray) -> bool:
        if self._wanted_m > self._closed_m + MOVED_M:
            return False
        if self._carried and not width_m >= self._closed_m + OBJECT_MIN_M:
            self._carried, self._grasp_q = False, None
            return True
        if not abs(width_m - self._still_m) <= MOVED_M / 3.0 or math.isinf(self._still_s):
            self._still_m, self._still_s = width_m, now_s
        holding = width_m > self._closed_m + OBJECT_MIN_M and now_s - self._still_s >= GRASPED_FOR_S
        if holding and self._grasp_q is None:
            self._grasp_q = q_command
        elif self._grasp_q is not None and float(abs(q_command - self._grasp_q).max()) > CARRIED_RAD:
            self._carried = True
        return False
