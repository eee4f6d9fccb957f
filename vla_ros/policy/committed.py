"""Real-time chunking, the part without a model: which rows of the running motion a new chunk has to begin with.

While the policy computes, the arm goes on along the chunk that it has. A model trained with a clean prefix of random
length (training-time real-time chunking) is given those rows and continues them, so that the new chunk joins the old
one where it arrives. Pure: every time is an argument.

What "will have been executed" means here. The rows come from the newest chunk that was sent, laid on the time axis of
stamps: the supervisor executes rows by time, and a chunk that still waits begins with the rows of the one before it,
so the newest one tells the whole story. Two things must agree with it, or nothing is committed: the supervisor says
that it moves and holds nothing (SafetyState), and the arm is where that chunk says at the stamp of the new observation
(joint states). An arm that was slowed down, held or pushed, or whose chunk was refused, is somewhere else. The state
of a simulator is never asked.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import LOOK_AHEAD_S
from vla_ros.core.types import MAX_ROWS, ActionSpace, FloatArray, Severity

DELAYS = 20  # newest ones that count: 2.7 s at 7.5 Hz; a choice (2506.07339 takes 10)
DELAY_QUANTILE = 0.9  # choice: too long a prefix costs a little reaction, too short a one joins with a step
# What a chunk says first of its own is done for so long, however often the policy is asked: at its usual 7.5 Hz that is
# so by itself. Asked at every row it only ever decided one row, and after a prefix of "stands, closed" that row is
# hardly ever "open" (docs/decisions.md).
KEEP_S = 0.13
OFF_MAX_M, OFF_MAX_RAD = 0.03, 0.15  # choice: farther from its chunk than this, the arm does not follow it
CHUNKINGS = ("prefix", "naive")  # what the policy node offers
DEFAULT_CHUNKING = "prefix"


@dataclass(frozen=True, slots=True)
class TimedChunk:
    """A chunk on the time axis: knot 0 is the observation itself, knot k + 1 is row k, due (k + 1) dt later."""

    stamp_ns: int
    dt_s: float
    R: FloatArray  # (rows + 1, 3, 3) tool in the base frame
    p: FloatArray  # (rows + 1, 3) m
    opening: FloatArray  # (rows,) 0 closed .. 1 open

    @staticmethod
    def of(data: FloatArray, stamp_ns: int, dt_s: float, pose: tuple[FloatArray, FloatArray]) -> TimedChunk:
        """data (rows, 7) of tool deltas, msg/ActionChunk; pose (R, p) of the tool at the stamp."""
        R = np.stack([pose[0], *(pin.exp3(row) @ pose[0] for row in data[:, 3:6])])  # (rows + 1, 3, 3)
        return TimedChunk(stamp_ns, dt_s, R, np.vstack([pose[1], pose[1] + data[:, :3]]), data[:, 6].copy())

    def knot(self, at_ns: int) -> float:
        """Time in rows since the observation: 0 at the stamp, k + 1 where row k is due."""
        return (at_ns - self.stamp_ns) * 1e-9 / self.dt_s

    def covers(self, at_ns: int) -> bool:
        return -1e-6 <= self.knot(at_ns) <= len(self.opening) + 1e-6

    def at(self, at_ns: int) -> tuple[FloatArray, FloatArray]:
        """(R, p) on the straight way between two knots; the last knot after the end."""
        u = min(max(self.knot(at_ns), 0.0), float(len(self.opening)))
        k = min(int(u), len(self.opening) - 1)
        way = pin.log3(self.R[k + 1] @ self.R[k].T)
        return pin.exp3((u - k) * way) @ self.R[k], self.p[k] + (u - k) * (self.p[k + 1] - self.p[k])

    def row(self, at_ns: int, pose: tuple[FloatArray, FloatArray]) -> FloatArray:
        """(7,) what this chunk wants at a time, as a row relative to another tool pose. The grip is never blended: it
        is that of the row being moved to."""
        R, p = self.at(at_ns)
        k = min(max(math.ceil(self.knot(at_ns) - 1e-6) - 1, 0), len(self.opening) - 1)
        return np.concatenate([p - pose[1], pin.log3(R @ pose[0].T), [self.opening[k]]])


class DelayEstimate:
    """How long it takes from an observation's stamp until its chunk has arrived: a high quantile of the newest ones."""

    def __init__(self, quantile: float = DELAY_QUANTILE) -> None:
        self._quantile = quantile
        self._newest: deque[float] = deque(maxlen=DELAYS)

    def add(self, delay_s: float) -> None:
        if 0.0 <= delay_s <= 10.0:  # a clock that was set back or far ahead is no delay
            self._newest.append(delay_s)

    @property
    def value_s(self) -> float | None:
        """None before the first one."""
        return float(np.quantile(self._newest, self._quantile, method="higher")) if self._newest else None


class Committed:
    """Remembers the newest chunk and gives the prefix for the next one. One thread at a time."""

    def __init__(self, contract: Contract, prefix_max: int) -> None:
        self._kinematics = Kinematics(contract)
        self._dt_s = contract.action.dt_s
        # The command for a row leaves the arm's own delay before the row is due, and the limiter has read the reference
        # as far ahead as it looks (core/chunks.py, core/limits.py): a new chunk joins after that. Without the second
        # part the mean step at the seam is about 50 instead of 9 mrad (docs/decisions.md).
        self._ahead_s = contract.arm.actuation_delay_s + LOOK_AHEAD_S
        # Joint-position rows need no pose to be relative to; nobody has trained such a policy here yet.
        self._longest = prefix_max if contract.action.space is ActionSpace.TOOL_DELTA else 0
        self._cols = contract.action.space.cols(contract.n_joints)
        self._chunk: TimedChunk | None = None
        self._instruction_id = 0
        self._moves = False
        self._given = 0  # rows that the chunk that is being computed does not decide
        self._kept_until_ns = 0  # what the chunks so far say until then is done
        self.delay = DelayEstimate()

    def clear(self) -> None:
        """After a stop or a new instruction: nothing is committed until another chunk has been sent."""
        self._chunk, self._kept_until_ns = None, 0

    def watch(self, severity: int, phase: str) -> None:
        """What SafetyState says. Where a motion ends in a hold, the supervisor forgets the chunk; so do we."""
        moves = severity < Severity.HOLD and phase == "moving"
        if self._moves and not moves:
            self.clear()
        self._moves = moves

    def sent(self, data: FloatArray, stamp_ns: int, q_rad: FloatArray, instruction_id: int) -> None:
        """A chunk (rows, cols) has left, computed from an observation with this stamp and joint position."""
        self._chunk = None
        if self._longest and np.isfinite(data).all():
            self._chunk = TimedChunk.of(data, stamp_ns, self._dt_s, self._kinematics.tool_pose(q_rad))
            self._instruction_id = instruction_id
            free_from_ns = stamp_ns + round(self._given * self._dt_s * 1e9)
            if free_from_ns >= self._kept_until_ns:
                self._kept_until_ns = free_from_ns + round(KEEP_S * 1e9)

    def executed_rows(self) -> int:
        """Rows of a new chunk that come too late to change anything; 0 while no delay is known."""
        delay_s = self.delay.value_s
        return 0 if delay_s is None else math.ceil((delay_s + self._ahead_s) / self._dt_s - 1e-6)

    def prefix(self, stamp_ns: int, q_rad: FloatArray, instruction_id: int) -> FloatArray:
        """(d, cols), d >= 0: rows that will have been executed before a chunk from this observation arrives, and those
        that are kept, relative to the tool pose of this observation."""
        kept = math.floor((self._kept_until_ns - stamp_ns) * 1e-9 / self._dt_s + 1e-6)
        rows = self._rows(stamp_ns, q_rad, instruction_id, min(max(self.executed_rows(), kept), self._longest))
        self._given = max(len(rows), self.executed_rows())
        if not len(rows):
            self._kept_until_ns = 0
        return rows

    def overlap(self, stamp_ns: int, q_rad: FloatArray, instruction_id: int) -> FloatArray:
        """(m, cols), m >= 0: everything that the running chunk still says, in the same terms; for guidance."""
        return self._rows(stamp_ns, q_rad, instruction_id, MAX_ROWS)

    def _rows(self, stamp_ns: int, q_rad: FloatArray, instruction_id: int, count: int) -> FloatArray:
        chunk, nothing = self._chunk, np.zeros((0, self._cols))
        if chunk is None or not self._moves or instruction_id != self._instruction_id or stamp_ns <= chunk.stamp_ns:
            return nothing
        pose = self._kinematics.tool_pose(q_rad)
        if not follows(chunk, stamp_ns, pose):
            return nothing
        due_ns = [stamp_ns + round((j + 1) * self._dt_s * 1e9) for j in range(count)]
        rows = [chunk.row(at_ns, pose) for at_ns in due_ns if chunk.covers(at_ns)]
        return np.stack(rows) if rows else nothing


def follows(chunk: TimedChunk, stamp_ns: int, pose: tuple[FloatArray, FloatArray]) -> bool:
    """Whether an arm with its tool at `pose` (R, p) is where the chunk says."""
    if not chunk.covers(stamp_ns):
        return False
    R, p = chunk.at(stamp_ns)
    off_m, off_rad = float(np.linalg.norm(pose[1] - p)), float(np.linalg.norm(pin.log3(pose[0] @ R.T)))
    return off_m <= OFF_MAX_M and off_rad <= OFF_MAX_RAD
