"""One bag becomes one episode: what perception made of the messages, what the arm was told, and what it did.

Cameras and joint states go through `core.observation.ObservationBuilder`, message by message in the order of receipt,
as in the perception node. Where the bag holds the indices of the live observations, the two are compared.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import SETTLED_GRIP_M, SETTLED_RAD_S, JointStateReader
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder, header_stamp_ns
from vla_ros.core.types import Observation
from vla_ros.data.bag_reader import Bag, BagError, Stored, require_contract, stamp_ns
from vla_ros.data.episode import Episode
from vla_ros.data.labels import Track, by_hand, chunks
from vla_ros.data.perceive import picture

NS = 1_000_000_000
TAIL_S = (
    1.0  # our choice: what follows the closing of an instruction shows that the arm stays; later it may go elsewhere
)
RATE_TOLERANCE = 0.2  # our choice: a data set has one frame rate; time would run faster or slower in this episode
FULFILLED = ("done", "fulfilled")


@dataclass(frozen=True)
class Extract:
    """One episode of f frames, without its pictures."""

    episode: Episode
    stamp_ns: NDArray[np.int64]  # (f,) ROS time of the newest picture
    state: NDArray[np.float32]  # (f, n + 1): measured joints [rad], gripper width [m]
    action: NDArray[np.float32]  # (f, n + 1): the setpoint with which the step ends: joints [rad], gripper width [m]
    chunk: NDArray[np.float32]  # (f, rows, cols) as in msg/ActionChunk
    done: NDArray[np.bool_]  # (f,): the task is fulfilled in this picture
    human: NDArray[np.bool_]  # (f,): a person drove, by teleoperation
    events: Mapping[str, int]  # SafetyEvents by rule
    refused: int  # pictures and joint states that perception refuses
    live: int  # indices of live observations within these frames
    equal: int  # of these, how many were made again with the same pictures and bit-equal joints
    longest_gap_s: float


def fulfilled(episode: Episode) -> bool:
    """As the world or a person judged it; where nobody did, as the policy did."""
    return episode.outcome in FULFILLED if episode.success is None else episode.success


def extract(
    bag: Bag, contract: Contract, keep: Callable[[Observation], None], gap_max_s: float | None = None
) -> Extract:
    """Calls `keep` with each frame's observation, in order. `gap_max_s` between two frames; None: the image timeout.

    Raises `BagError` for another contract, a missing topic, no frames, a wrong rate, a gap, or values not finite.
    """
    require_contract(bag, contract)
    reading = _Reading(bag, contract, keep)
    for message in bag.messages(list(reading.handlers)):
        reading.handlers[message.topic](message)
    try:
        return reading.finish(contract.timeouts.image_s if gap_max_s is None else gap_max_s)
    except Invalid as error:
        raise BagError(f"{bag.folder}: {error}") from error


@dataclass
class _Reading:
    bag: Bag
    contract: Contract
    keep: Callable[[Observation], None]
    frames: list[Observation] = field(default_factory=list)  # without pictures
    joints: list[tuple[int, NDArray[np.float64], float, float]] = field(default_factory=list)  # stamp, q, width, speed
    commands: list[tuple[int, NDArray[np.float64], float]] = field(default_factory=list)  # stamp, q, width
    driven: list[tuple[int, bool]] = field(default_factory=list)  # log time, whether a person drives from then on
    indices: dict[int, Any] = field(default_factory=dict)  # stamp of a live observation -> its message
    picture_stamps: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of each frame made here
    events: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    def __post_init__(self) -> None:
        bag, contract = self.bag, self.contract
        self.episode = bag.episode()
        self.builder, self.reader = ObservationBuilder(contract), JointStateReader(contract)
        self.newest_ns: dict[str, int] = {}
        self.open_ns, self.close_ns = self._told()
        self.handlers: dict[str, Callable[[Stored], None]] = {}
        wanted: list[tuple[str, bool, Callable[[Stored], None]]] = [
            *((camera.topic, True, self._picture_of(camera)) for camera in contract.cameras),
            (contract.arm.joint_state_topic, True, self._joint_state),
            ("safe_command", True, self._command),
            ("observation", False, self._index),
            ("safety_event", False, self._event),
            ("teleoperated", False, self._driver),
        ]
        for name, needed, handler in wanted:
            topic = bag.find(name)
            if topic is not None and bag.topics[topic].count:
                self.handlers[topic] = handler
            elif needed:
                raise BagError(
                    f"{bag.folder}: no message on {name}; there are: "
                    + (", ".join(t.name for t in bag.topics.values() if t.count) or "none at all")
                )

    def _told(self) -> tuple[int, int]:
        """When the arm was told the sentence, and when that was closed [ns]; the whole bag where it was not heard."""
        topic = self.bag.find("instruction")
        own, opened, closed = self.episode.instruction_id, 0, 0
        for message in self.bag.messages([topic]) if topic is not None else ():
            given = self.bag.decode(message).instruction_id
            if not opened and given and given == (own or given):
                own, opened, closed = given, message.log_ns, 0
            elif given != own and not closed:
                closed = message.log_ns if opened or not given else 0
        return opened, closed or 1 << 62

    # ------------------------------------------------------------------------------------------ messages

    def _picture_of(self, camera: Camera) -> Callable[[Stored], None]:
        def take(message: Stored) -> None:
            now_s = message.log_ns / NS
            try:
                rgb, stamp = picture(self.bag, camera, message)
                self.builder.add_image(camera.name, rgb, stamp, message.log_ns, now_s)
                self.newest_ns[camera.name] = stamp
                observation = self.builder.take(now_s)
            except Invalid:
                self.refused += 1
                return
            if observation is not None and self.open_ns <= observation.stamp_ns <= self.close_ns + int(TAIL_S * NS):
                self._frame(observation)

        return take

    def _frame(self, observation: Observation) -> None:
        self.keep(observation)
        self.picture_stamps[observation.stamp_ns] = tuple(self.newest_ns[c.name] for c in self.contract.cameras)
        self.frames.append(dataclasses.replace(observation, images={}))

    def _joint_state(self, message: Stored) -> None:
        try:
            stamp = header_stamp_ns(message.data)
            if not self.builder.wants_joints(stamp):
                return
            m = self.bag.decode(message)
            sample = self.reader.read(m.name, m.position, m.velocity, message.log_ns / NS, m.effort)
            self.builder.add_joints(sample, stamp)
        except Invalid:
            self.refused += 1
            return
        self.joints.append((stamp, sample.q_rad, sample.gripper_width_m, float(np.abs(sample.qd_rad_s).max())))

    def _command(self, message: Stored) -> None:
        m = self.bag.decode(message)
        at_ns = stamp_ns(m.stamp)
        if not self.commands or at_ns > self.commands[-1][0]:
            self.commands.append((at_ns, np.asarray(m.position, dtype=np.float64), float(m.gripper_width)))

    def _index(self, message: Stored) -> None:
        m = self.bag.decode(message)
        self.indices[stamp_ns(m.stamp)] = m

    def _event(self, message: Stored) -> None:
        self.events[str(self.bag.decode(message).rule)] += 1

    def _driver(self, message: Stored) -> None:
        self.driven.append((message.log_ns, bool(self.bag.decode(message).data)))

    # ------------------------------------------------------------------------------------------ the end

    def finish(self, gap_max_s: float) -> Extract:
        stamps = np.array([f.stamp_ns for f in self.frames], dtype=np.int64)  # (f,)
        gap_s = self._require_frames(stamps, gap_max_s)
        told_ns = np.array([at for at, _, _ in self.commands], dtype=np.int64)
        told_q = np.stack([q for _, q, _ in self.commands])  # (c, n)
        if told_q.shape[1:] != (self.contract.n_joints,) or not np.isfinite(told_q).all():
            raise Invalid("safe_command.position", told_q.shape, f"{self.contract.n_joints} finite numbers each")
        track = Track(
            stamp_ns=np.array([at for at, _, _, _ in self.joints], dtype=np.int64),
            q_rad=np.stack([q for _, q, _, _ in self.joints]),
            told_ns=told_ns,
            told_width_m=np.array([width for _, _, width in self.commands]),
        )
        q = np.stack([f.q_rad for f in self.frames])  # (f, n)
        width = np.array([f.gripper_width_m for f in self.frames])  # (f,)
        chunk = chunks(self.contract, Kinematics(self.contract), stamps, track)
        ends_ns = np.append(stamps[1:], stamps[-1] + (stamps[-1] - stamps[0]) // (len(stamps) - 1))
        last = np.maximum(np.searchsorted(told_ns, ends_ns, side="right") - 1, 0)  # command in force when the step ends
        live = [f for f in self.frames if f.stamp_ns in self.indices]
        return Extract(
            episode=self.episode,
            stamp_ns=stamps,
            state=np.column_stack([q, width]).astype(np.float32),
            action=np.column_stack([told_q[last], track.told_width_m[last]]).astype(np.float32),
            chunk=chunk,
            done=(stamps > self._moved_until_ns()) & fulfilled(self.episode),
            human=by_hand(
                stamps,
                np.array([at for at, _ in self.driven], dtype=np.int64),
                np.array([person for _, person in self.driven], dtype=np.bool_),
            ),
            events=dict(sorted(self.events.items())),
            refused=self.refused,
            live=len(live),
            equal=sum(self._equal(f) for f in live),
            longest_gap_s=gap_s,
        )

    def _require_frames(self, stamps: NDArray[np.int64], gap_max_s: float) -> float:
        if len(stamps) < 2:
            raise Invalid("frames", len(stamps), ">= 2; the episode has no length, leave it out")
        rate = NS / float(np.median(np.diff(stamps)))  # a gap is judged for itself
        wanted = frame_rate(self.contract)
        if not abs(rate / wanted - 1.0) <= RATE_TOLERANCE:
            raise Invalid(
                "frames per second", round(rate, 2), f"{wanted} +- {RATE_TOLERANCE:.0%}, as the contract says"
            )
        gap_s = float(np.diff(stamps).max()) / NS
        if not gap_s <= gap_max_s:
            raise Invalid(
                "longest gap between frames [s]", round(gap_s, 3), f"<= {gap_max_s:g}",
                "`vla bag trim` cuts it away, --max-gap allows it",
            )  # fmt: skip
        return gap_s

    def _moved_until_ns(self) -> int:
        """When arm or fingers were last seen moving, before the last frame, which shows a task that ended well."""
        until, width = self.frames[0].stamp_ns, self.joints[0][2]
        for at_ns, _, now_width, speed in self.joints:
            if speed > SETTLED_RAD_S or abs(now_width - width) > SETTLED_GRIP_M:
                until, width = at_ns, now_width
        return min(until, self.frames[-1].stamp_ns - 1)

    def _equal(self, frame: Observation) -> bool:
        """Whether the live observation was made of the same pictures and the same joint state."""
        index = self.indices[frame.stamp_ns]
        return (
            tuple(stamp_ns(image.stamp) for image in index.images) == self.picture_stamps[frame.stamp_ns]
            and np.array_equal(index.position, frame.q_rad)
            and np.array_equal(index.velocity, frame.qd_rad_s)
            and float(index.gripper_width) == frame.gripper_width_m
        )


def frame_rate(contract: Contract) -> int:
    """Frames per second of a data set: whole, of the slowest camera."""
    return max(round(min(camera.rate_hz for camera in contract.cameras)), 1)
