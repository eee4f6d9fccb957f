"""The way back: the newest stretch of the executed path, which an operator may have the arm retrace."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ros.core.curve import Curve
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import FloatArray

STEP_RAD = 0.03  # choice: largest joint distance of two remembered positions; longer than one tick at full speed
POSITIONS = 50  # choice: what is remembered, some 2 rad, half a metre of the tool; older surroundings may have changed
RETREAT_RAD_S = 0.2  # choice: of the fastest joint


class ExecutedPath:
    """A string laid along the commanded positions. It has an end, grows with the arm and is taken up when it goes back.

    So a retreat that is interrupted and asked for again goes on where it was, and fidgeting leaves no trace.
    """

    def __init__(self) -> None:
        self._points: deque[FloatArray] = deque(maxlen=POSITIONS)

    def clear(self) -> None:
        self._points.clear()

    def record(self, q: FloatArray) -> None:
        """One commanded position (n,)."""
        points = self._points
        while len(points) > 1 and _far(q, points[-2]) < 0.5 * STEP_RAD:
            points.pop()
        if not points or _far(q, points[-1]) >= STEP_RAD:
            points.append(q)

    def leads_away_from(self, q: FloatArray) -> bool:
        return any(_far(q, point) >= STEP_RAD for point in self._points)

    def way_back(self, q: FloatArray, kinematics: Kinematics, speed_max_m_s: float) -> Curve:
        """From `q` (n,) to the oldest remembered position, from rest to rest; tool and elbow stay below the speed."""
        knots = np.vstack([q, *reversed(self._points)])  # (m, n)
        tangents = np.gradient(knots, STEP_RAD / RETREAT_RAD_S, axis=0)  # (m, n) rad/s
        tangents[[0, -1]] = 0.0
        fastest = max(float(kinematics.speeds(*pair).max()) for pair in zip(knots, tangents, strict=True))
        slower = max(fastest / speed_max_m_s, float(np.abs(tangents).max()) / RETREAT_RAD_S, 1.0)
        return Curve(0.0, slower * STEP_RAD / RETREAT_RAD_S, knots, tangents / slower)


def _far(q: FloatArray, other: FloatArray) -> float:
    return float(np.abs(q - other).max())
