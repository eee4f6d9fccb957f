"""Averages of overlapping chunks, the alternatives to a committed prefix. For comparison; no node uses them.

Every chunk that still has something to say about a moment proposes a tool pose for it; the mean of these is sent. The
newest chunk alone decides the grip: a hand that is half open holds nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import FloatArray
from vla_ros.policy.committed import TimedChunk

ACT_DECAY = 0.01  # m of ACT (2304.13705): weight exp(-m i), i = 0 for the OLDEST prediction
ADAPTIVE_SHARPNESS = 0.1  # alpha of CogACT (2411.19650): weight exp(alpha cos(newest, older))
WINDOW = 7  # predictions that count, newest included; CogACT's window for slow motion
LEVER_M = 0.1  # a radian of turning counts as this much way in the cosine; a choice
KINDS = ("ensemble", "adaptive")


class Ensemble:
    """`kind`: "ensemble" as in ACT, "adaptive" as in CogACT. One thread at a time."""

    def __init__(self, contract: Contract, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, allowed: {', '.join(KINDS)}")
        self._kinematics = Kinematics(contract)
        self._dt_s, self._kind = contract.action.dt_s, kind
        self._chunks: deque[TimedChunk] = deque(maxlen=WINDOW)

    def clear(self) -> None:
        """After a new instruction: nothing of the old one is averaged in."""
        self._chunks.clear()

    def mean(self, data: FloatArray, stamp_ns: int, q_rad: FloatArray) -> FloatArray:
        """data (rows, 7), fresh from the policy -> (rows, 7), averaged with the chunks before it."""
        pose = self._kinematics.tool_pose(q_rad)
        self._chunks.append(TimedChunk.of(data, stamp_ns, self._dt_s, pose))
        out = data.copy()
        for j in range(len(data)):
            at_ns = stamp_ns + round((j + 1) * self._dt_s * 1e9)
            said = np.stack([c.row(at_ns, pose) for c in self._chunks if c.covers(at_ns)])  # (m, 7), oldest first
            out[j, :6] = self._weights(said) @ said[:, :6]
        return out

    def _weights(self, said: FloatArray) -> FloatArray:
        """(m,) that sum to 1."""
        if self._kind == "ensemble":
            weight = np.exp(-ACT_DECAY * np.arange(len(said)))
        else:
            way = said[:, :6] * np.array([1.0, 1.0, 1.0, LEVER_M, LEVER_M, LEVER_M])  # (m, 6) m
            length = np.maximum(np.linalg.norm(way, axis=1), 1e-6)
            weight = np.exp(ADAPTIVE_SHARPNESS * (way @ way[-1]) / (length * length[-1]))
        mean: FloatArray = weight / weight.sum()
        return mean
