"""Data that crosses process boundaries. Frozen; `validate()` raises `Invalid` naming field, value and limit.

Arrays are float64 unless said otherwise and must not be written to after construction. `n` is the number of
arm joints, in contract order.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.errors import Invalid

FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]

MAX_ROWS = 64  # msg/ActionChunk
DT_MIN_S, DT_MAX_S = 0.01, 0.5  # msg/ActionChunk


class Severity(enum.IntEnum):  # order is the rule: max() picks the winner
    RUN = 0
    LIMIT = 1
    HOLD = 2
    STOP = 3
    DISARM = 4


class ActionSpace(enum.IntEnum):  # values of msg/ActionChunk
    TOOL_DELTA = 1
    JOINT_POSITION = 2

    def cols(self, n_joints: int) -> int:
        return 7 if self is ActionSpace.TOOL_DELTA else n_joints + 1


class CommandMode(enum.IntEnum):  # values of msg/SafeCommand
    HOLD = 0
    MOVE = 1
    STOP = 2


class Source(enum.IntEnum):
    """Who proposes motion (D10). Exactly one is listened to."""

    POLICY = 0
    TELEOPERATION = 1


def require_finite(field: str, value: object, reason: str = "non_finite") -> None:
    """Finite first, in float64: NaN passes clamps and fails range tests in silence."""
    if isinstance(value, float):  # most calls, at a tenth of the cost
        finite = math.isfinite(value)
    elif isinstance(value, np.ndarray) and value.ndim == 1 and math.isfinite(value @ value):
        return  # a square that is finite has finite parts; one that is not may only be too large
    else:
        finite = bool(np.isfinite(np.asarray(value, dtype=np.float64)).all())
    if not finite:
        raise Invalid(field, value, "finite numbers", reason=reason)


def require_vector(field: str, value: FloatArray, n: int | None = None, reason: str = "shape") -> None:
    if value.ndim != 1 or value.size == 0 or (n is not None and value.size != n):
        raise Invalid(field, value.shape, f"({n if n is not None else 'n'},)", reason=reason)
    require_finite(field, value)


def require_range(field: str, value: float, low: float, high: float, reason: str = "range") -> None:
    require_finite(field, value)
    if not (low <= value <= high):
        raise Invalid(field, value, f"{low:g} to {high:g}", reason=reason)


@dataclass(frozen=True, slots=True)
class JointSample:
    """One joint state. `measured_at_s` is the receiver's steady clock at receipt."""

    q_rad: FloatArray  # (n,)
    qd_rad_s: FloatArray  # (n,)
    gripper_width_m: float
    measured_at_s: float
    effort_nm: FloatArray | None = None  # (n,) measured joint torque; None where the driver publishes none

    def validate(self, n_joints: int | None = None) -> None:
        require_vector("q_rad", self.q_rad, n_joints)
        require_vector("qd_rad_s", self.qd_rad_s, self.q_rad.size)
        if self.effort_nm is not None:
            require_vector("effort_nm", self.effort_nm, self.q_rad.size)
        require_finite("gripper_width_m", self.gripper_width_m)
        require_finite("measured_at_s", self.measured_at_s)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees at one instant. Images are cropped and resized already, in the contract's order."""

    stamp_ns: int  # ROS time of the newest image
    sequence: int
    contract_hash: str
    images: dict[str, ByteArray]  # camera name -> (H, W, 3) uint8 rgb
    q_rad: FloatArray  # (n,)
    qd_rad_s: FloatArray  # (n,)
    gripper_width_m: float

    def validate(self, n_joints: int | None = None) -> None:
        if not self.stamp_ns > 0:
            raise Invalid("stamp_ns", self.stamp_ns, "> 0", reason="stamp")
        if not self.sequence >= 1:
            raise Invalid("sequence", self.sequence, ">= 1", reason="sequence")
        if not 1 <= len(self.images) <= 4:
            raise Invalid("images", len(self.images), "1 to 4 cameras", reason="shape")
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise Invalid(f"images[{name}]", (image.shape, image.dtype), "(H, W, 3) uint8", reason="shape")
        require_vector("q_rad", self.q_rad, n_joints)
        require_vector("qd_rad_s", self.qd_rad_s, self.q_rad.size)
        require_finite("gripper_width_m", self.gripper_width_m)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A short motion proposed by a policy. `observed_at_s`: the observation's stamp, on the receiver's steady clock."""

    observed_at_s: float
    writer_id: int
    instruction_id: int
    sequence: int
    contract_hash: str
    space: ActionSpace
    dt_s: float
    data: FloatArray  # (rows, cols)
    committed_rows: int = 0
    inference_s: float = 0.0
    confidence: float = 1.0
    done_probability: float = 0.0
    source: Source = Source.POLICY

    def validate(self, n_joints: int) -> None:
        """Everything that can be judged without state. Finite comes before every range."""
        for field in ("observed_at_s", "dt_s", "inference_s", "confidence", "done_probability"):
            require_finite(field, getattr(self, field))
        if self.data.ndim != 2 or not 1 <= self.data.shape[0] <= MAX_ROWS:
            raise Invalid("data", self.data.shape, f"(1 to {MAX_ROWS} rows, cols)", reason="shape")
        try:
            space = ActionSpace(self.space)
        except ValueError:
            raise Invalid("space", self.space, "1 (tool delta) or 2 (joint position)", reason="space") from None
        if self.data.shape[1] != space.cols(n_joints):
            raise Invalid("data", self.data.shape, f"{space.cols(n_joints)} columns", reason="shape")
        require_finite("data", self.data)
        require_range("dt_s", self.dt_s, DT_MIN_S, DT_MAX_S, reason="dt")
        require_range("confidence", self.confidence, 0.0, 1.0)
        require_range("done_probability", self.done_probability, 0.0, 1.0)
        if not self.inference_s >= 0.0:
            raise Invalid("inference_s", self.inference_s, ">= 0")
        if not 0 <= self.committed_rows <= self.data.shape[0]:
            raise Invalid("committed_rows", self.committed_rows, f"0 to {self.data.shape[0]}")
        for field in ("writer_id", "instruction_id", "sequence"):
            if not getattr(self, field) >= 1:
                raise Invalid(field, getattr(self, field), ">= 1", reason=field)


@dataclass(frozen=True, slots=True)
class Command:
    """One setpoint for the arm, inside every limit. `at_s` is the steady time it was computed for."""

    q_rad: FloatArray  # (n,)
    qd_rad_s: FloatArray  # (n,)
    gripper_width_m: float
    mode: CommandMode
    rearm_counter: int
    sequence: int
    writer_id: int
    at_s: float

    def validate(self, n_joints: int | None = None) -> None:
        require_vector("q_rad", self.q_rad, n_joints)
        require_vector("qd_rad_s", self.qd_rad_s, self.q_rad.size)
        require_finite("gripper_width_m", self.gripper_width_m)
        if not math.isfinite(self.at_s):
            raise Invalid("at_s", self.at_s, "finite", reason="non_finite")
        try:
            CommandMode(self.mode)
        except ValueError:
            raise Invalid("mode", self.mode, "0, 1 or 2", reason="mode") from None
        for field, low in (("rearm_counter", 0), ("sequence", 1), ("writer_id", 1)):
            if not getattr(self, field) >= low:
                raise Invalid(field, getattr(self, field), f">= {low}", reason=field)


@dataclass(frozen=True, slots=True)
class ArmStatus:
    """What the arm controller reports. `reported_at_s` is the receiver's steady clock at receipt."""

    ready: bool  # its joint states are fresh: a rearm can be taken
    latched: bool
    reason: str
    rearm_counter: int  # newest rearm it has taken
    reported_at_s: float


@dataclass(frozen=True, slots=True)
class PerceptionStatus:
    """What perception says about its cameras. `reported_at_s` is the receiver's steady clock at receipt."""

    reason: str  # empty: every camera is good; else image_stale, image_frozen or image_blind
    contract_hash: str
    reported_at_s: float
