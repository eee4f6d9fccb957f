"""The robot contract as data. `vla_ros.core.contract` reads it from config/robots/<name>.yaml and checks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_ros.core.errors import Invalid
from vla_ros.core.types import ActionSpace, FloatArray


@dataclass(frozen=True, slots=True)
class JointLimits:
    """Bounds of n joints, contract order, arrays (n,). `q_*` are the soft limits, inside the position limits."""

    q_lo_rad: FloatArray
    q_hi_rad: FloatArray
    v_max_rad_s: FloatArray
    a_max_rad_s2: FloatArray
    j_max_rad_s3: FloatArray


@dataclass(frozen=True, slots=True)
class Workspace:
    """Box for the tool centre point in the base frame, (3,) each."""

    lower_m: FloatArray
    upper_m: FloatArray


@dataclass(frozen=True, slots=True)
class Speed:
    tool_m_s: float
    reduced_m_s: float


@dataclass(frozen=True, slots=True)
class Poses:
    home_rad: FloatArray  # (n,)
    ready_rad: FloatArray  # (n,)


@dataclass(frozen=True, slots=True)
class Gripper:
    joint: str
    closed_m: float
    open_m: float
    speed_m_s: float
    force_n: float


@dataclass(frozen=True, slots=True)
class Camera:
    """`crop_px` is (left, top, width, height) in the driver's image; it is resized to policy_px x policy_px."""

    name: str
    topic: str
    width_px: int
    height_px: int
    rate_hz: float
    crop_px: tuple[int, int, int, int]
    policy_px: int


@dataclass(frozen=True, slots=True)
class Action:
    space: ActionSpace
    rows: int
    cols: int
    dt_s: float


@dataclass(frozen=True, slots=True)
class Rates:
    control_hz: float
    policy_hz: float


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Ages on the receiver's steady clock."""

    image_s: float
    joint_state_s: float
    chunk_s: float
    safe_command_s: float
    operator_heartbeat_s: float


@dataclass(frozen=True, slots=True)
class Tolerances:
    rest_rad_s: float  # below this measured speed the arm counts as at rest (rearm guard)
    rearm_start_rad: float  # first command after a rearm lies this close to the arm controller's hold position


@dataclass(frozen=True, slots=True)
class Arm:
    backend: str
    joint_state_topic: str
    command_topic: str
    gripper_topic: str
    actuation_delay_s: float


@dataclass(frozen=True, slots=True)
class Contract:
    name: str
    hash: str
    source: str
    urdf_path: Path
    base_frame: str
    tool_frame: str
    elbow_frame: str
    joint_names: tuple[str, ...]
    limits: JointLimits
    workspace: Workspace
    speed: Speed
    poses: Poses
    gripper: Gripper
    cameras: tuple[Camera, ...]
    action: Action
    rates: Rates
    timeouts: Timeouts
    tolerances: Tolerances
    arm: Arm
    operator_heartbeat_required: bool

    @property
    def n_joints(self) -> int:
        return len(self.joint_names)

    @property
    def period_s(self) -> float:
        return 1.0 / self.rates.control_hz

    def camera(self, name: str) -> Camera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise Invalid("camera", name, ", ".join(camera.name for camera in self.cameras))
