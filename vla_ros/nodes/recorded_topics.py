"""What is recorded: every topic of the graph, and how those are stored that are not stored as they come.

Messages stay serialised, images and observations excepted: a camera is stored compressed, an observation without its
pixels, which are the cameras' anyway.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, Empty, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_ros.core.contract import Contract
from vla_ros.data.images import Coding
from vla_ros.data.stored import compress, without_pixels
from vla_ros.msg import (
    ActionChunk,
    ArmState,
    Instruction,
    Observation,
    PerceptionStatus,
    PolicyStatus,
    SafeCommand,
    SafetyEvent,
    SafetyState,
)
from vla_ros.nodes import conversions


@dataclasses.dataclass(frozen=True)
class Source:
    """One topic as it is heard: relative name, type, row of the QoS table. `stored`: the type in the bag if another."""

    name: str
    kind: type
    stream: str
    stored: type | None = None
    suffix: str = ""  # of the stored topic
    change: Callable[[bytes], bytes] | None = None


def sources(contract: Contract, coding: Coding) -> list[Source]:
    """What is recorded, cameras first."""
    heard = []
    for camera in contract.cameras:
        change = functools.partial(compress, camera, coding)
        heard.append(Source(camera.topic, Image, "image", CompressedImage, "/compressed", change))
        heard.append(Source(conversions.camera_info_topic(camera.topic), CameraInfo, "camera_info"))
    return [
        *heard,
        Source(contract.arm.joint_state_topic, JointState, "joint_states"),
        Source(contract.arm.command_topic, JointTrajectory, "joint_trajectory"),
        Source(contract.arm.gripper_topic, Float64MultiArray, "gripper_command"),
        Source("observation", Observation, "observation", change=without_pixels),
        Source("action_chunk", ActionChunk, "action_chunk"),
        Source("teleop_chunk", ActionChunk, "action_chunk"),
        Source("teleoperated", Bool, "teleoperated"),
        Source("safe_command", SafeCommand, "safe_command"),
        Source("safety_state", SafetyState, "safety_state"),
        Source("safety_event", SafetyEvent, "safety_event"),
        Source("instruction", Instruction, "instruction"),
        Source("policy_status", PolicyStatus, "policy_status"),
        Source("perception_status", PerceptionStatus, "perception_status"),
        Source("arm_state", ArmState, "arm_state"),
        Source("interrupt", Empty, "interrupt"),
        Source("reduced_speed", Bool, "reduced_speed"),
    ]


def kind_name(kind: type) -> str:
    """package/msg/Type of a message class."""
    package, _, _ = kind.__module__.partition(".")
    return f"{package}/msg/{kind.__name__}"
