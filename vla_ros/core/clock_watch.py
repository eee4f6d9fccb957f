"""Whether simulated time runs (fault E9): /clock may be missing, pause, or step back when a simulation is reset."""

from __future__ import annotations

import math

CLOCK_SILENT_S = 0.2  # of steady time


class ClockWatch:
    """Only where ROS time is simulated: the system's clock is not ours to judge (E8)."""

    def __init__(self) -> None:
        self._ros_ns = -1
        self._moved_at_s = -math.inf

    def runs(self, now_s: float, ros_ns: int) -> bool:
        """False from 200 ms without a newer time on, and in the tick that sees it step back."""
        if ros_ns < self._ros_ns:
            self._ros_ns, self._moved_at_s = ros_ns, -math.inf
            return False
        if ros_ns > self._ros_ns and ros_ns > 0:  # 0: nothing has been heard yet
            self._ros_ns, self._moved_at_s = ros_ns, now_s
        return now_s - self._moved_at_s <= CLOCK_SILENT_S
