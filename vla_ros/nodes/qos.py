"""The one table of QoS. No endpoint of the graph is created with a literal profile.

Deadlines are request and offer: a subscriber that requests one from a publisher that offers none receives no data at
all, so both ends take theirs from here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


@dataclass(frozen=True)
class Stream:
    """How one topic travels. `offered_ms` and `requested_ms` are deadlines, None where the stream has none."""

    reliable: bool = True
    latched: bool = False  # transient local: a late joiner gets the newest sample at once
    depth: int = 1  # commands and state are worth only their newest sample
    offered_ms: int | None = None
    requested_ms: int | None = None


TABLE: dict[str, Stream] = {
    "image": Stream(),
    "camera_info": Stream(),
    "joint_states": Stream(),
    "observation": Stream(),
    "action_chunk": Stream(
        depth=2
    ),  # the tail of one policy and the head of its successor must not overwrite each other
    "instruction": Stream(depth=4),  # an id and the closing of another may be sent within one tick
    "policy_status": Stream(latched=True, depth=4),  # a verdict must not be lost behind the periodic status
    "safe_command": Stream(offered_ms=40, requested_ms=50),
    "interrupt": Stream(),  # volatile: a late joiner never gets an old command
    "operator_heartbeat": Stream(),
    "reduced_speed": Stream(),
    "perception_status": Stream(),
    "arm_state": Stream(latched=True),
    "safety_state": Stream(latched=True),
    "teleoperated": Stream(latched=True),
    "joy": Stream(),
    "safety_event": Stream(depth=50),  # evidence: bursts are kept
    "joint_trajectory": Stream(),
    "gripper_command": Stream(),
    "diagnostics": Stream(depth=10),  # many writers
}


def offered(stream: str) -> QoSProfile:
    """Profile of a publisher."""
    row = TABLE[stream]
    return _profile(row, row.reliable, row.offered_ms)


FOREIGN = ("joint_states", "camera_info", "joy")  # publishers we did not write: the weakest request matches every offer
HEARTBEAT_PERIOD_S = 0.1  # of whoever gives operator_heartbeat: a fifth of the timeout
RECORDED_DEPTH = {"image": 10, "camera_info": 10}  # our choice: a third of a second at 30 Hz
RECORDED_DEPTH_DEFAULT = 250  # our choice: half a second of joint states at 500 Hz


def requested(stream: str) -> QoSProfile:
    """Profile of a subscriber."""
    row = TABLE[stream]
    return _profile(row, row.reliable and stream not in FOREIGN, row.requested_ms)


def recorded(stream: str) -> QoSProfile:
    """Profile of a subscriber that wants every sample, not only the newest, and judges no deadline."""
    row = dataclasses.replace(TABLE[stream], depth=RECORDED_DEPTH.get(stream, RECORDED_DEPTH_DEFAULT))
    return _profile(row, row.reliable and stream not in FOREIGN, None)


def described(stream: str) -> dict[str, Any]:
    """How a topic is offered, in the words of a bag's metadata.yaml; what is not told is the default."""
    row = TABLE[stream]
    deadline_ns = (row.offered_ms or 0) * 1_000_000
    return {
        "depth": row.depth,
        "reliability": "reliable" if row.reliable else "best_effort",
        "durability": "transient_local" if row.latched else "volatile",
        "deadline": {"sec": 0, "nsec": deadline_ns},
    }


def _profile(row: Stream, reliable: bool, deadline_ms: int | None) -> QoSProfile:
    profile = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=row.depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if row.latched else DurabilityPolicy.VOLATILE,
    )
    if deadline_ms is not None:
        profile.deadline = Duration(nanoseconds=deadline_ms * 1_000_000)
    return profile
