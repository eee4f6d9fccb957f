"""From camera images and joint states to what the policy sees. The only image code: live, simulator and data use it."""

from __future__ import annotations

import functools
import math
import struct
from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.image_checks import MOVING_RAD_S, ImageWatch
from vla_ros.core.types import ByteArray, FloatArray, JointSample, Observation, PerceptionStatus

SKEW_MAX_S = 0.080  # fault A6: between cameras, and between image and joints
JOINT_HISTORY = 256  # samples kept to find the one nearest to an image; 2.5 s at 100 Hz
JOINT_SLOT_NS = 10_000_000  # our choice: an image is matched within 5 ms; the rest of a 500 Hz stream is not decoded
SIDE_MAX_PX = 8192

# encoding of sensor_msgs/Image -> (bytes per pixel, indices of red, green, blue)
ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def header_stamp_ns(serialised: bytes) -> int:
    """ROS time [ns] of a CDR message that begins with a std_msgs/Header; nothing else is decoded. Raises `Invalid`."""
    if len(serialised) < 12:  # encapsulation 4, sec 4, nanosec 4
        raise Invalid("serialised message", len(serialised), ">= 12 bytes", reason="state_invalid")
    sec, nanosec = struct.unpack_from("<iI" if serialised[1] & 1 else ">iI", serialised, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


def decode_image(
    camera: Camera, encoding: str, height_px: int, width_px: int, step_bytes: int, data: bytes | bytearray | memoryview
) -> ByteArray:
    """(H, W, 3) uint8 rgb from the fields of a sensor_msgs/Image. Judged before any allocation (fault A4)."""
    if encoding not in ENCODINGS:
        raise Invalid("encoding", encoding, ", ".join(ENCODINGS), reason="image_invalid")
    if not (1 <= height_px <= SIDE_MAX_PX and 1 <= width_px <= SIDE_MAX_PX):
        raise Invalid("height, width", (height_px, width_px), f"1 to {SIDE_MAX_PX}", reason="image_invalid")
    if (width_px, height_px) != (camera.width_px, camera.height_px):
        raise Invalid(
            f"{camera.name}: width, height", (width_px, height_px), f"{camera.width_px} x {camera.height_px}",
            "the contract's camera and the driver differ", reason="image_invalid",
        )  # fmt: skip
    pixel_bytes, channels = ENCODINGS[encoding]
    if not step_bytes >= width_px * pixel_bytes:
        raise Invalid("step", step_bytes, f">= {width_px * pixel_bytes}", reason="image_invalid")
    if len(data) != height_px * step_bytes:
        raise Invalid("data length", len(data), f"height * step = {height_px * step_bytes}", reason="image_invalid")
    rows: ByteArray = np.frombuffer(data, dtype=np.uint8).reshape(height_px, step_bytes)  # (H, step)
    pixels: ByteArray = rows[:, : width_px * pixel_bytes].reshape(height_px, width_px, pixel_bytes)  # (H, W, C)
    if encoding == "rgb8":
        return pixels
    rgb: ByteArray = pixels[:, :, channels]  # (H, W, 3)
    return rgb


def prepare_image(rgb: ByteArray, camera: Camera) -> ByteArray:
    """Crop, then mean over areas: (H, W, 3) uint8 -> (policy_px, policy_px, 3) uint8. Exact and the same everywhere.

    Not for a loop thread's hot path beyond camera rate: about 0.3 ms for 224 px.
    """
    if rgb.dtype != np.uint8 or rgb.shape != (camera.height_px, camera.width_px, 3):
        raise Invalid(
            f"{camera.name}: image", (rgb.shape, str(rgb.dtype)), f"({camera.height_px}, {camera.width_px}, 3) uint8",
            reason="image_invalid",
        )  # fmt: skip
    left, top, width, height = camera.crop_px
    crop = rgb[top : top + height, left : left + width]  # (h, w, 3)
    size = camera.policy_px
    if width == height == size:
        return np.ascontiguousarray(crop)
    if width % size == 0 and height % size == 0:
        ky, kx = height // size, width // size
        narrow = ky * kx <= 128  # the sum fits 16 bits, twice as fast
        total = np.zeros((size, size, 3), dtype=np.uint16 if narrow else np.uint32)  # (p, p, 3)
        for dy in range(ky):
            for dx in range(kx):
                total += crop[dy::ky, dx::kx]
        area = ky * kx
        return ((total + area // 2) // area).astype(np.uint8)  # rounds half up
    rows, columns = _area_weights(height, size), _area_weights(width, size)  # (p, h), (p, w)
    blurred = np.einsum("ph,hwc->pwc", rows, crop.astype(np.float64), optimize=True)  # (p, w, 3)
    mean = np.einsum("qw,pwc->pqc", columns, blurred, optimize=True)  # (p, p, 3)
    resized: ByteArray = np.floor(mean + 0.5).clip(0.0, 255.0).astype(np.uint8)
    return resized


@functools.lru_cache(maxsize=16)
def _area_weights(n_in: int, n_out: int) -> FloatArray:
    """(n_out, n_in): the share of each input pixel in each output pixel's area; rows sum to 1."""
    edges = np.arange(n_out + 1) * (n_in / n_out)  # (n_out + 1,)
    pixel = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)  # (n_out, n_in)
    weights: FloatArray = np.clip(overlap, 0.0, None) * (n_out / n_in)
    return weights


@dataclass(frozen=True, slots=True)
class _Frame:
    image: ByteArray  # (policy_px, policy_px, 3), prepared
    stamp_ns: int
    received_s: float
    previous_ns: int | None  # stamp of the frame before


class ObservationBuilder:
    """Newest image of each camera plus the joint sample nearest in stamp. Pure: every time is an argument.

    `stamp_ns` and `now_ros_ns` are ROS time; `now_s` is the steady clock at receipt. One thread at a time.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._frames: dict[str, _Frame] = {}
        self._joints: deque[tuple[int, JointSample]] = deque(maxlen=JOINT_HISTORY)
        self._slot = -1  # of the newest joint sample
        self._used_ns: dict[str, int] = {}
        self._watches = {camera.name: ImageWatch() for camera in contract.cameras}
        self._sequence = 0
        self._in_step_at_s = -math.inf  # receipt of the newest frame that fitted the others (A6)
        self._now_ros_ns = 0

    def add_image(self, name: str, rgb: ByteArray, stamp_ns: int, now_ros_ns: int, now_s: float) -> None:
        """Takes the driver's image (H, W, 3). Raises `Invalid` with the reason; the frame is then dropped."""
        camera = self._contract.camera(name)
        age_s = (now_ros_ns - stamp_ns) * 1e-9
        limit_s = self._contract.timeouts.image_s
        if self._now_ros_ns - now_ros_ns > limit_s * 1e9:  # a step back, not two cameras' stamps in turns
            self.reset()
        self._now_ros_ns = now_ros_ns
        if not abs(age_s) <= limit_s:  # fault A3: an old frame that arrives now
            raise Invalid(f"{name}: stamp age [s]", age_s, f"-{limit_s:g} to {limit_s:g}", reason="image_stamp")
        last = self._frames.get(name)
        if last is not None and not stamp_ns > last.stamp_ns:
            raise Invalid(f"{name}: stamp [ns]", stamp_ns, f"> {last.stamp_ns}", reason="image_stamp")
        image = prepare_image(rgb, camera)
        self._frames[name] = _Frame(image, stamp_ns, now_s, last.stamp_ns if last is not None else None)
        moves = bool(self._joints) and bool(np.abs(self._joints[-1][1].qd_rad_s).max() > MOVING_RAD_S)
        self._watches[name].take(rgb, moves)
        newest_ns = max(frame.stamp_ns for frame in self._frames.values())
        joints_late_s = (newest_ns - self._joints[-1][0]) * 1e-9 if self._joints else 0.0
        if self._camera_skew_s() <= SKEW_MAX_S and joints_late_s <= SKEW_MAX_S:
            self._in_step_at_s = now_s

    def wants_joints(self, stamp_ns: int) -> bool:
        """Whether a joint state with this stamp is to be decoded: the first of each slot of ROS time. It depends on the
        stamps alone, so that a recorder which heard the same messages at other times leads to the same observations."""
        return stamp_ns // JOINT_SLOT_NS > self._slot

    def add_joints(self, sample: JointSample, stamp_ns: int) -> None:
        """Samples in order of stamp; an older or equal stamp is refused."""
        sample.validate(self._contract.n_joints)
        if self._joints and not stamp_ns > self._joints[-1][0]:
            raise Invalid("joint stamp [ns]", stamp_ns, f"> {self._joints[-1][0]}", reason="state_stamp")
        self._joints.append((stamp_ns, sample))
        self._slot = stamp_ns // JOINT_SLOT_NS

    def reset(self) -> None:
        """After a backward jump of ROS time: what is buffered belongs to another time line (fault E9)."""
        self._frames.clear()
        self._joints.clear()
        self._used_ns.clear()
        self._slot = -1

    @property
    def ready(self) -> bool:
        """Every camera has a frame that no observation has used yet, and these belong together."""
        return (
            all(
                camera.name in self._frames and self._frames[camera.name].stamp_ns > self._used_ns.get(camera.name, -1)
                for camera in self._contract.cameras
            )
            and not self._belongs_to_the_frame_before()
        )

    def _belongs_to_the_frame_before(self) -> bool:
        """The oldest frame is much nearer to the frame before the newest one, whose own partner is still to come.

        Without this, cameras that expose together but were first heard between two of their frames would be paired one
        period apart for ever. Twice as near, not just nearer: cameras half a period apart must not wait in turns."""
        oldest = min(self._frames.values(), key=lambda frame: frame.stamp_ns)
        newest = max(self._frames.values(), key=lambda frame: frame.stamp_ns)
        if newest.previous_ns is None:
            return False
        return 2 * abs(oldest.stamp_ns - newest.previous_ns) < newest.stamp_ns - oldest.stamp_ns

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Age of each camera's newest frame on the steady clock; infinite before the first one."""
        return {
            camera.name: now_s - self._frames[camera.name].received_s if camera.name in self._frames else float("inf")
            for camera in self._contract.cameras
        }

    def _camera_skew_s(self) -> float:
        """Between the newest frames of all cameras; infinite before each has one."""
        if len(self._frames) < len(self._contract.cameras):
            return math.inf
        stamps = [frame.stamp_ns for frame in self._frames.values()]
        return (max(stamps) - min(stamps)) * 1e-9

    def status(self, now_s: float) -> PerceptionStatus:
        """What the supervisor must know about the cameras (A1, A2, A5): the first that is wrong, in contract order.

        Frames that have been out of step with each other or with the joints for long are as good as none (A6)."""
        stale = any(not age_s <= self._contract.timeouts.image_s for age_s in self.ages_s(now_s).values())
        stale |= not now_s - self._in_step_at_s <= self._contract.timeouts.image_s
        verdicts = [watch.verdict for watch in self._watches.values() if watch.verdict]
        reason = "image_stale" if stale else (verdicts or [""])[0]
        return PerceptionStatus(reason, self._contract.hash, now_s)

    def take(self, now_s: float) -> Observation | None:
        """The next observation, or None until every camera has a new frame. Raises as `build`."""
        return self.build(now_s) if self.ready else None

    def build(self, now_s: float) -> Observation:
        """Raises `Invalid` when a camera or the joints are missing, stale, or out of step by more than 80 ms."""
        limit_s = self._contract.timeouts.image_s
        for name, age_s in self.ages_s(now_s).items():
            if not age_s <= limit_s:
                raise Invalid(f"{name}: image age [s]", age_s, f"<= {limit_s:g}", reason="image_stale")
        stamps = [self._frames[camera.name].stamp_ns for camera in self._contract.cameras]
        skew_s = self._camera_skew_s()
        if not skew_s <= SKEW_MAX_S:
            raise Invalid("camera skew [s]", skew_s, f"<= {SKEW_MAX_S:g}", reason="skew")
        if not self._joints:
            raise Invalid("joint state", "missing", "at least one sample", reason="state_stale")
        stamp_ns, sample = min(self._joints, key=lambda item: abs(item[0] - max(stamps)))
        skew_s = abs(stamp_ns - max(stamps)) * 1e-9
        if not skew_s <= SKEW_MAX_S:
            raise Invalid("image to joint skew [s]", skew_s, f"<= {SKEW_MAX_S:g}", reason="skew")
        self._sequence += 1
        self._used_ns = {name: frame.stamp_ns for name, frame in self._frames.items()}
        return Observation(
            stamp_ns=max(stamps),
            sequence=self._sequence,
            contract_hash=self._contract.hash,
            images={camera.name: self._frames[camera.name].image for camera in self._contract.cameras},
            q_rad=sample.q_rad,
            qd_rad_s=sample.qd_rad_s,
            gripper_width_m=sample.gripper_width_m,
        )
