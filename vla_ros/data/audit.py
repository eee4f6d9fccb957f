"""Judges one episode: is it what the contract says, whole, and true to time? Findings name topic, time and bounds.

The pictures are judged by the code that judges them live (`core.image_checks`), the joints by the live reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_ros.core.contract import Camera, Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.image_checks import BAD_FRAMES, MOVING_RAD_S, ImageWatch
from vla_ros.core.joints import JUMP_DT_MIN_S, JUMP_FACTOR, JointStateReader
from vla_ros.core.observation import decode_image
from vla_ros.core.types import FloatArray
from vla_ros.data import images
from vla_ros.data.audit_metadata import about
from vla_ros.data.bag_reader import Bag, BagError, Stored, own_contract, stamp_ns
from vla_ros.data.findings import Finding, Kind, Weight, finding, grade
from vla_ros.data.timing import NS, Stream, judge

LENGTH_MIN_S = 0.5  # our choice: a shorter episode holds no motion
STATE_GAP_S = 0.5  # our choice: five periods of SafetyState
LIMIT_SLACK = 1e-6  # rounding
LISTED_MAX = 5  # findings of one kind on one topic; the rest is counted in the last one


@dataclass
class Audit:
    bag: str
    grade: str
    findings: list[Finding]
    duration_s: float
    events: dict[str, int]  # vetoes of the supervisor by rule: no fault of the recording

    def facts(self) -> dict[str, Any]:
        return {
            "bag": self.bag,
            "grade": self.grade,
            "duration_s": round(self.duration_s, 3),
            "safety_events": self.events,
            "findings": [f.facts() for f in self.findings],
        }


def audit_folder(folder: Path, contract: Contract) -> Audit:
    """As `audit`; a bag that cannot even be opened is graded, too."""
    try:
        return audit(Bag.open(folder), contract)
    except BagError as error:
        unreadable = finding(Kind.UNREADABLE, str(error), "unreadable", "a bag")
        return Audit(str(folder), grade([unreadable]), [unreadable], 0.0, {})


def audit(bag: Bag, contract: Contract) -> Audit:
    """Raises nothing because of what the bag contains; that is what findings are for."""
    work = _Work(bag, contract)
    findings = list(work.run())
    findings.sort(key=lambda f: (-f.weight, f.at_s, f.topic))
    return Audit(str(bag.folder), grade(findings), findings, bag.duration_s, dict(sorted(work.events.items())))


@dataclass
class _Picture:
    """What was seen of one camera."""

    camera: Camera
    topic: str
    watch: ImageWatch = field(default_factory=ImageWatch)
    verdict: str = ""
    since_ns: int = 0
    frames: int = 0


class _Work:
    def __init__(self, bag: Bag, contract: Contract) -> None:
        self._bag = bag
        self._mismatch = bag.custom_data.get("contract_hash", "") != contract.hash
        # Rates and sizes are judged by the contract it was recorded with: one finding, not one for each consequence.
        self._contract = (own_contract(bag) or contract) if self._mismatch else contract
        self._given = contract
        self._reader = JointStateReader(self._contract)
        self._pictures: dict[str, _Picture] = {}  # by topic
        self._times: dict[str, tuple[list[int], list[int]]] = {}  # log and stamp [ns]
        self._notes: list[Finding] = []
        self._listed: dict[tuple[Kind, str], int] = {}
        self._moves = False
        self._joints: tuple[int, FloatArray] | None = None
        self._moving_ns: list[tuple[int, bool]] = []  # when following a policy began and ended
        self._hashes: set[str] = set()
        self.events: dict[str, int] = {}

    def run(self) -> Iterator[Finding]:
        bag = self._bag
        yield from about(bag, self._given)
        if not (bag.messages_total and bag.duration_s >= LENGTH_MIN_S):
            yield finding(Kind.EMPTY, "seconds from the first to the last message", bag.duration_s, LENGTH_MIN_S)
            return
        handlers = dict(self._handlers())
        yield from self._missing()
        try:
            for message in bag.messages(list(handlers)):
                self._take(message, handlers[message.topic])
        except BagError as error:
            yield finding(Kind.UNREADABLE, str(error), "damaged", "readable to its end")
        for picture in self._pictures.values():
            self._end_verdict(picture)
        yield from self._notes
        for stream in self._streams():
            if stream.log_ns.size:
                yield from judge(stream, bag.start_ns, bag.end_ns)
        yield from self._chunk_gaps()

    # -- messages ------------------------------------------------------------------------------------------

    def _missing(self) -> Iterator[Finding]:
        c, bag = self._contract, self._bag
        needed = [*(camera.topic for camera in c.cameras), c.arm.joint_state_topic, "safe_command"]
        expected = ["safety_state", "instruction"]
        if bag.custom_data.get("policy_hash") and not self._count("teleop_chunk"):
            expected.append("action_chunk")
        for name in (*needed, *expected):
            topic, weight = bag.find(name), Weight.FATAL if name in needed else Weight.MAJOR
            if topic is None or not bag.topics[topic].count:
                yield finding(Kind.MISSING, "messages", 0, ">= 1", topic or name, weight=weight)

    def _count(self, name: str) -> int:
        topic = self._bag.find(name)
        return 0 if topic is None else self._bag.topics[topic].count

    def _handlers(self) -> Iterator[tuple[str, Callable[[Stored, Any], None]]]:
        c, bag = self._contract, self._bag
        wanted: list[tuple[str, Callable[[Stored, Any], None]]] = [
            (c.arm.joint_state_topic, self._joint_state),
            ("safe_command", self._command),
            ("safety_state", self._state),
            ("safety_event", self._event),
            ("action_chunk", self._chunk),
            ("teleop_chunk", self._chunk),
            ("perception_status", self._hash),
            ("observation", self._hash),
        ]
        for camera in c.cameras:
            topic = bag.find(camera.topic)
            if topic is not None:
                self._pictures[topic] = _Picture(camera, topic)
                yield topic, self._picture
        for name, handler in wanted:
            topic = bag.find(name)
            if topic is not None:
                yield topic, handler

    def _take(self, message: Stored, handler: Callable[[Stored, Any], None]) -> None:
        logs, _ = self._times.setdefault(message.topic, ([], []))
        try:
            decoded = self._bag.decode(message)
            logs.append(message.log_ns)
            handler(message, decoded)
        except Invalid as error:
            kind = Kind.NON_FINITE if error.reason == "non_finite" else Kind.JOINTS
            kind = Kind.UNREADABLE if error.reason == "invalid" else kind
            kind = Kind.CONTRACT if error.reason == "image_invalid" else kind
            self._note(kind, str(error), "refused", error.allowed, message)
        except BagError as error:
            self._note(Kind.UNREADABLE, str(error), "unreadable", "a message of its type", message)

    def _note(self, kind: Kind, text: str, value: float | str, threshold: float | str, message: Stored) -> None:
        """A fault that may repeat in every message is told a few times."""
        key = (kind, message.topic)
        self._listed[key] = self._listed.get(key, 0) + 1
        if self._listed[key] <= LISTED_MAX:
            at_s = (message.log_ns - self._bag.start_ns) / NS
            self._notes.append(finding(kind, text, value, threshold, message.topic, at_s))

    def _picture(self, message: Stored, m: Any) -> None:
        picture = self._pictures[message.topic]
        self._times[message.topic][1].append(stamp_ns(m.header.stamp))
        camera = picture.camera
        if hasattr(m, "encoding"):
            rgb = decode_image(camera, m.encoding, m.height, m.width, m.step, memoryview(m.data))
        else:
            rgb = images.decode(memoryview(m.data))
            if rgb.shape[:2] != (camera.height_px, camera.width_px):
                raise Invalid("height, width", rgb.shape[:2], f"{camera.height_px} x {camera.width_px}",
                              reason="image_invalid")  # fmt: skip
        picture.watch.take(rgb, self._moves)
        if picture.watch.verdict != picture.verdict:
            self._end_verdict(picture)
            picture.verdict, picture.since_ns, picture.frames = picture.watch.verdict, message.log_ns, BAD_FRAMES - 1
        picture.frames += 1

    def _end_verdict(self, picture: _Picture) -> None:
        if picture.verdict:
            kind = Kind.FROZEN if picture.verdict == "image_frozen" else Kind.BLIND
            text = (
                "equal pictures in a row while the arm moves"
                if kind is Kind.FROZEN
                else "black, white or flat pictures"
            )
            at_s = (picture.since_ns - self._bag.start_ns) / NS
            self._notes.append(finding(kind, text, picture.frames, BAD_FRAMES, picture.topic, at_s))

    def _joint_state(self, message: Stored, m: Any) -> None:
        self._times[message.topic][1].append(stamp_ns(m.header.stamp))
        sample = self._reader.read(m.name, m.position, m.velocity, message.log_ns / NS, m.effort)
        self._moves = bool(np.abs(sample.qd_rad_s).max() > MOVING_RAD_S)
        if self._joints is not None:
            passed_s = max((stamp_ns(m.header.stamp) - self._joints[0]) / NS, JUMP_DT_MIN_S)
            step = np.abs(sample.q_rad - self._joints[1]) / self._contract.limits.v_max_rad_s / passed_s
            if not step.max() <= JUMP_FACTOR:
                name = self._contract.joint_names[int(step.argmax())]
                text = f"{name} jumps, in multiples of its greatest speed"
                self._note(Kind.JOINTS, text, float(step.max()), JUMP_FACTOR, message)
        self._joints = (stamp_ns(m.header.stamp), sample.q_rad)

    def _command(self, message: Stored, m: Any) -> None:
        self._times[message.topic][1].append(stamp_ns(m.stamp))
        q, v, limits = np.asarray(m.position), np.asarray(m.velocity), self._contract.limits
        if q.shape != limits.q_lo_rad.shape or v.shape != q.shape:
            raise Invalid("position, velocity", (q.size, v.size), f"{limits.q_lo_rad.size} each", reason="shape")
        if not (np.isfinite(q).all() and np.isfinite(v).all() and np.isfinite(m.gripper_width)):
            raise Invalid("command", q.tolist(), "finite numbers", reason="non_finite")
        outside = float(np.maximum(limits.q_lo_rad - q, q - limits.q_hi_rad).max())
        if not outside <= LIMIT_SLACK:
            self._note(Kind.LIMITS, "rad outside the soft limits", outside, 0.0, message)
        fast = float((np.abs(v) / limits.v_max_rad_s).max())
        if not fast <= 1.0 + LIMIT_SLACK:
            self._note(Kind.LIMITS, "commanded speed over its limit", fast, 1.0, message)

    def _state(self, message: Stored, m: Any) -> None:
        self._moving_ns.append((message.log_ns, m.phase == "moving" and m.instruction_id > 0))

    def _event(self, message: Stored, m: Any) -> None:
        self.events[str(m.rule)] = self.events.get(str(m.rule), 0) + 1

    def _hash(self, message: Stored, m: Any) -> None:
        """One finding for the bag, if its own metadata say something else than its messages."""
        known = (self._bag.custom_data.get("contract_hash", ""), *self._hashes)
        if m.contract_hash not in known:
            self._hashes.add(m.contract_hash)
            self._note(Kind.CONTRACT, "contract hash of the messages", m.contract_hash[:16], known[0][:16], message)

    def _chunk(self, message: Stored, m: Any) -> None:
        self._hash(message, m)
        if not np.isfinite(m.data).all():
            raise Invalid("chunk.data", "NaN or infinite", "finite numbers", reason="non_finite")

    # -- streams ---------------------------------------------------------------------------------------------

    def _streams(self) -> Iterator[Stream]:
        c = self._contract
        for topic, picture in self._pictures.items():
            yield self._stream(topic, picture.camera.rate_hz, c.timeouts.image_s, frames=True)
        control_hz = c.rates.control_hz
        yield self._stream(c.arm.joint_state_topic, control_hz, c.timeouts.joint_state_s, at_least=True)
        yield self._stream("safe_command", control_hz, c.timeouts.safe_command_s)
        yield self._stream("safety_state", None, STATE_GAP_S)
        yield self._stream("perception_status", None, c.timeouts.image_s)

    def _stream(
        self, name: str, rate_hz: float | None, gap_max_s: float, at_least: bool = False, frames: bool = False
    ) -> Stream:
        topic = self._bag.find(name) or name
        logs, stamps = self._times.get(topic, ([], []))
        stamp = np.array(stamps, dtype=np.int64) if stamps and len(stamps) == len(logs) else None
        return Stream(topic, np.array(logs, dtype=np.int64), stamp, rate_hz, at_least, gap_max_s, frames)

    def _chunk_gaps(self) -> Iterator[Finding]:
        """Between chunks, of policy or person, while one is followed; a pause is no gap."""
        topic, person = (self._bag.find(name) or name for name in ("action_chunk", "teleop_chunk"))
        times_of = [self._times.get(name, ([], []))[0] for name in (topic, person)]
        logs = np.sort(np.array([*times_of[0], *times_of[1]], dtype=np.int64))
        if logs.size < 2 or not self._moving_ns:
            return
        times = np.array([at for at, _ in self._moving_ns], dtype=np.int64)
        moving = np.array([moves for _, moves in self._moving_ns])
        limit_s = self._contract.timeouts.chunk_s
        for k in np.flatnonzero(np.diff(logs) > limit_s * NS):
            between = moving[np.searchsorted(times, logs[k]) : np.searchsorted(times, logs[k + 1])]
            if between.size and between.all():
                gap_s = float(logs[k + 1] - logs[k]) / NS
                at_s = float(logs[k] - self._bag.start_ns) / NS
                yield finding(Kind.GAP, "seconds without a chunk while the arm follows", gap_s, limit_s, topic, at_s)
                return
