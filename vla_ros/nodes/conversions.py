"""Messages <-> core types, in one place. Everything here is a pure function of its arguments.

A message that does not convert raises `Invalid`; it never becomes a half-filled object.
"""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_ros.core import wire
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.types import (
    ActionSpace,
    ArmStatus,
    ByteArray,
    Chunk,
    Command,
    CommandMode,
    FloatArray,
    JointSample,
    Observation,
    PerceptionStatus,
    Source,
)
from vla_ros.msg import ActionChunk, ArmState, CameraImage, SafeCommand, SafetyEvent, SafetyState
from vla_ros.msg import Observation as ObservationMsg
from vla_ros.msg import PerceptionStatus as PerceptionStatusMsg

if TYPE_CHECKING:
    from vla_ros.core.contract import Contract
    from vla_ros.core.supervisor import Decision, SafetyEventData

NS = 1_000_000_000
CLOCKS_TOGETHER_S = 0.0005  # our choice: ten times what reading three clocks takes at most; a tick takes longer
CLOCK_DRIFT_NS = 2_000_000  # our choice: a step of the ROS clock larger than this is followed, jitter is not
STAMP_END_NS = 2**31 * NS  # builtin_interfaces/Time ends in 2038


class ClockBridge:
    """Between ROS time (stamps) and the steady clock (ages). Feed it both clocks now and then with `observe`.

    The offset is kept while the clocks agree within `CLOCK_DRIFT_NS`, so that intervals between stamps are exactly the
    intervals between steady times: a preempted thread must not show up as a jump in a recorded velocity.
    """

    def __init__(self, ros_now_ns: int, steady_now_s: float) -> None:
        self._offset_ns = ros_now_ns - round(steady_now_s * NS)

    def observe(self, steady_before_s: float, ros_now_ns: int, steady_after_s: float) -> None:
        """Steady times right before and right after; nothing is learned where this thread had to wait between them."""
        if not steady_after_s - steady_before_s < CLOCKS_TOGETHER_S:
            return
        offset_ns = ros_now_ns - round(steady_before_s * NS)
        if not -CLOCK_DRIFT_NS <= offset_ns - self._offset_ns <= CLOCK_DRIFT_NS:
            self._offset_ns = offset_ns

    def steady_s(self, stamp: Time, steady_now_s: float) -> float:
        """Steady time of a stamp, never in the future: a stamp ahead of our clock has age 0."""
        return min((stamp_ns(stamp) - self._offset_ns) / NS, steady_now_s)

    def ros_ns(self, steady_s: float) -> int:
        return round(steady_s * NS) + self._offset_ns

    def stamp(self, steady_s: float) -> Time:
        return to_stamp(self.ros_ns(steady_s))


def stamp_ns(stamp: Time) -> int:
    return int(stamp.sec) * NS + int(stamp.nanosec)


def to_stamp(ns: int) -> Time:
    ns = min(max(ns, 0), STAMP_END_NS - 1)
    return Time(sec=ns // NS, nanosec=ns % NS)


def bytes_field(values: ByteArray) -> array.array[int]:
    """A uint8[] field from numpy. Assigning the numpy array itself takes 119 ms for a VGA image; this takes 0.05 ms."""
    field = array.array("B")
    field.frombytes(np.ascontiguousarray(values).reshape(-1).data)
    return field


def doubles_field(values: FloatArray) -> array.array[float]:
    field = array.array("d")
    field.frombytes(np.ascontiguousarray(values, dtype=np.float64).reshape(-1).data.cast("B"))
    return field


def doubles(field: Any) -> FloatArray:
    """A float64[] field as a numpy copy, (n,)."""
    return np.array(field, dtype=np.float64)


# ------------------------------------------------------------------------------------------------- robot and cameras


def joint_sample(message: JointState, reader: JointStateReader, received_at_s: float) -> JointSample:
    return reader.read(message.name, message.position, message.velocity, received_at_s, message.effort)


def joint_state(contract: Contract, q_rad: FloatArray, qd_rad_s: FloatArray, width_m: float, stamp: Time) -> JointState:
    message = JointState(name=[*contract.joint_names, contract.gripper.joint])
    message.header.stamp = stamp
    message.header.frame_id = contract.base_frame
    message.position = doubles_field(np.append(q_rad, width_m / 2.0))
    message.velocity = doubles_field(np.append(qd_rad_s, 0.0))
    return message


def rgb_image(pixels: ByteArray, frame_id: str, stamp: Time) -> Image:
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding="rgb8", step=3 * pixels.shape[1])
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.data = bytes_field(pixels)
    return message


def camera_info_topic(image_topic: str) -> str:
    """Where camera drivers put it: beside the image."""
    folder, slash, _ = image_topic.rpartition("/")
    return f"{folder}{slash}camera_info"


def camera_info(height_px: int, width_px: int, focal_px: float, frame_id: str, stamp: Time) -> CameraInfo:
    """Of a camera without distortion, the principal point in the middle."""
    fx, cx, cy = focal_px, width_px / 2.0, height_px / 2.0
    message = CameraInfo(height=height_px, width=width_px, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.k = np.array([fx, 0.0, cx, 0.0, fx, cy, 0.0, 0.0, 1.0])
    message.r = np.eye(3).reshape(-1)
    message.p = np.array([fx, 0.0, cx, 0.0, 0.0, fx, cy, 0.0, 0.0, 0.0, 1.0, 0.0])
    return message


def rgb_pixels(message: Image) -> ByteArray:
    """(H, W, 3) view of an rgb8 image that we made ourselves (`rgb_image`); foreign images go through perception."""
    if message.encoding != "rgb8" or len(message.data) != message.height * message.step:
        raise Invalid("image", (message.encoding, len(message.data)), "rgb8, height * step bytes")
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.step)
    return rows[:, : 3 * message.width].reshape(message.height, message.width, 3)


def trajectory(names: tuple[str, ...], q_rad: FloatArray, qd_rad_s: FloatArray, in_s: float) -> JointTrajectory:
    """One point, to be reached `in_s` from receipt: stamp zero means "now" to joint_trajectory_controller."""
    point = JointTrajectoryPoint(positions=doubles_field(q_rad), velocities=doubles_field(qd_rad_s))
    point.time_from_start.sec, point.time_from_start.nanosec = int(in_s), round((in_s % 1.0) * NS)
    return JointTrajectory(joint_names=list(names), points=[point])


def trajectory_end(message: JointTrajectory, names: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
    """Positions and velocities of the last point, in the order of `names`."""
    if sorted(message.joint_names) != sorted(names):
        raise Invalid("joint_names", list(message.joint_names), f"exactly {', '.join(names)}")
    if not message.points:
        raise Invalid("points", 0, "at least one point")
    order = [message.joint_names.index(name) for name in names]
    point = message.points[-1]
    q, qd = doubles(point.positions), doubles(point.velocities)
    if q.size != len(names) or qd.size not in (0, len(names)):
        raise Invalid("points[-1]", (q.size, qd.size), f"{len(names)} positions, and as many velocities or none")
    if not (np.isfinite(q).all() and np.isfinite(qd).all()):
        raise Invalid("points[-1]", q.tolist(), "finite numbers")
    return q[order], (qd[order] if qd.size else np.zeros_like(q))


def grip(width_m: float) -> Float64MultiArray:
    """For a forward position controller of the one finger that the contract names; the other mirrors it."""
    return Float64MultiArray(data=doubles_field(np.array([width_m / 2.0])))


def grip_width_m(message: Float64MultiArray) -> float:
    if len(message.data) != 1 or not np.isfinite(message.data[0]):
        raise Invalid("gripper command", list(message.data), "one finite position of the finger joint [m]")
    return 2.0 * float(message.data[0])


# ------------------------------------------------------------------------------------------------- our own messages


def observation_message(observation: Observation) -> ObservationMsg:
    stamp = to_stamp(observation.stamp_ns)
    images = [
        CameraImage(name=name, stamp=stamp, height=pixels.shape[0], width=pixels.shape[1], data=bytes_field(pixels))
        for name, pixels in observation.images.items()
    ]
    return ObservationMsg(
        stamp=stamp,
        sequence=observation.sequence,
        contract_hash=observation.contract_hash,
        images=images,
        position=doubles_field(observation.q_rad),
        velocity=doubles_field(observation.qd_rad_s),
        gripper_width=observation.gripper_width_m,
    )


def observation(message: ObservationMsg, n_joints: int) -> Observation:
    images: dict[str, ByteArray] = {}
    for image in message.images:
        if len(image.data) != image.height * image.width * 3:
            raise Invalid(f"images[{image.name}].data", len(image.data), f"{image.height} * {image.width} * 3 bytes")
        images[image.name] = np.frombuffer(image.data, dtype=np.uint8).reshape(image.height, image.width, 3)
    result = Observation(
        stamp_ns=stamp_ns(message.stamp),
        sequence=message.sequence,
        contract_hash=message.contract_hash,
        images=images,
        q_rad=doubles(message.position),
        qd_rad_s=doubles(message.velocity),
        gripper_width_m=message.gripper_width,
    )
    result.validate(n_joints)
    return result


def chunk_message(
    data: FloatArray,
    *,
    stamp_ns: int,
    writer_id: int,
    instruction_id: int,
    sequence: int,
    contract_hash: str,
    space: ActionSpace,
    dt_s: float,
    inference_s: float,
    confidence: float,
    done_probability: float,
    committed_rows: int = 0,
) -> ActionChunk:
    """Values are sent as they are: a NaN of the policy must reach the supervisor's gate, and be seen to be refused."""
    field = array.array("f")
    field.frombytes(np.ascontiguousarray(data, dtype=np.float32).reshape(-1).data.cast("B"))
    return ActionChunk(
        stamp=to_stamp(stamp_ns),
        writer_id=writer_id,
        instruction_id=instruction_id,
        sequence=sequence,
        contract_hash=contract_hash,
        space=int(space),
        dt=dt_s,
        rows=data.shape[0],
        cols=data.shape[1],
        data=field,
        committed_rows=committed_rows,
        inference_time=inference_s,
        confidence=confidence,
        done_probability=done_probability,
    )


def chunk(message: ActionChunk, clocks: ClockBridge, steady_now_s: float, source: Source = Source.POLICY) -> Chunk:
    return wire.chunk(message, clocks.steady_s(message.stamp, steady_now_s), source)


def command_message(command: Command, clocks: ClockBridge) -> SafeCommand:
    return SafeCommand(
        stamp=clocks.stamp(command.at_s),
        sequence=command.sequence,
        writer_id=command.writer_id,
        rearm_counter=command.rearm_counter,
        position=doubles_field(command.q_rad),
        velocity=doubles_field(command.qd_rad_s),
        gripper_width=command.gripper_width_m,
        mode=int(command.mode),
    )


def command(message: SafeCommand, clocks: ClockBridge, steady_now_s: float) -> Command:
    try:
        mode = CommandMode(message.mode)
    except ValueError:
        raise Invalid("safe_command.mode", message.mode, "0 (hold), 1 (move) or 2 (stop)", reason="mode") from None
    return Command(
        q_rad=doubles(message.position),
        qd_rad_s=doubles(message.velocity),
        gripper_width_m=message.gripper_width,
        mode=mode,
        rearm_counter=message.rearm_counter,
        sequence=message.sequence,
        writer_id=message.writer_id,
        at_s=clocks.steady_s(message.stamp, steady_now_s),
    )


def state_message(
    decision: Decision, *, stamp: Time, writer_id: int, malformed_chunks: int, ticks: int, late_ticks: int
) -> SafetyState:
    """`ticks` and `late_ticks` are of the loop: deadlines, without the ticks that events add."""
    return SafetyState(
        stamp=stamp,
        writer_id=writer_id,
        severity=int(decision.severity),
        reason=decision.reason.value,
        latched=decision.latched,
        speed_scale=decision.scale,
        instruction_id=decision.instruction_id,
        text=decision.text,
        phase=decision.phase,
        heartbeat=decision.heartbeat,
        done_probability=decision.done_probability,
        tool_speed=decision.tool_speed_m_s,
        speed_cap=decision.speed_cap_m_s,
        contact_monitored=decision.contact_monitored,
        chunks_accepted=decision.counters.chunks_accepted,
        chunks_rejected=decision.counters.chunks_rejected + malformed_chunks,
        late_ticks=late_ticks,
        ticks=ticks,
    )


def event_message(event: SafetyEventData, stamp: Time) -> SafetyEvent:
    return SafetyEvent(
        stamp=stamp,
        rule=event.rule[:64],
        limit=event.limit,
        value=event.value,
        index=event.index,
        chunk_sequence=event.chunk_sequence,
        text=event.text[:256],
    )


def arm_state_message(status: ArmStatus, *, stamp: Time, writer_id: int, supervisor_id: int) -> ArmState:
    return ArmState(
        stamp=stamp,
        writer_id=writer_id,
        supervisor_id=supervisor_id,
        ready=status.ready,
        latched=status.latched,
        reason=status.reason[:64],
        rearm_counter=status.rearm_counter,
    )


def perception_status_message(status: PerceptionStatus, stamp: Time) -> PerceptionStatusMsg:
    return PerceptionStatusMsg(stamp=stamp, reason=status.reason[:64], contract_hash=status.contract_hash)
