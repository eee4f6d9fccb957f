"""Makes episodes as the recorder writes them: a moving arm, noisy cameras, chunks, commands, states.

`make(folder, name)` writes a good one. Faults are planted by `change`, a function from a message to those that are
written in its place, and by the other arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.reader import SeekingReader
from mcap.records import Chunk, Message
from mcap.stream_reader import breakup_chunk
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vla_ros.core import contract as contracts
from vla_ros.core.decision import Inputs
from vla_ros.core.errors import Refused
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.supervisor import Supervisor
from vla_ros.core.teleop import CHUNK_PERIOD_S, Teleoperation, Twist
from vla_ros.core.types import JointSample, Observation, Source
from vla_ros.data import recorded as recordings
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode
from vla_ros.data.images import Coding
from vla_ros.data.replay import WARM_UP_CALLS
from vla_ros.data.ros_schema import schema
from vla_ros.policy.runtime import PolicyOutput

NS = 1_000_000_000
START_NS = 1_700_000_000 * NS
INSTRUCTION_AT_S, DONE_BEFORE_END_S = 0.5, 0.5
RATES_HZ = {"joint_states": 500.0, "safe_command": 100.0, "safety_state": 10.0, "perception_status": 20.0}

KINDS = {
    "joint_states": "sensor_msgs/msg/JointState",
    "action_chunk": "vla_ros/msg/ActionChunk",
    "teleop_chunk": "vla_ros/msg/ActionChunk",
    "teleoperated": "std_msgs/msg/Bool",
    "safe_command": "vla_ros/msg/SafeCommand",
    "safety_state": "vla_ros/msg/SafetyState",
    "safety_event": "vla_ros/msg/SafetyEvent",
    "instruction": "vla_ros/msg/Instruction",
    "policy_status": "vla_ros/msg/PolicyStatus",
    "arm_state": "vla_ros/msg/ArmState",
    "perception_status": "vla_ros/msg/PerceptionStatus",
}


class Made(NamedTuple):
    """A message on its way into the bag. `message` is a rosbags object; `stamp_ns` the time of its header, if any."""

    topic: str
    log_ns: int
    message: Any


Change = Callable[[Made], Iterable[Made]]


class Fabric:
    """Types and contract, loaded once. `t` makes messages: `t("builtin_interfaces/msg/Time", sec=1, nanosec=2)`."""

    def __init__(self) -> None:
        self.contract = contracts.load("panda")
        self.store = get_typestore(Stores.EMPTY)
        for kind in (*KINDS.values(), "sensor_msgs/msg/CompressedImage"):
            types = get_types_from_msg(schema(kind).text, kind)
            self.store.register({k: v for k, v in types.items() if k not in self.store.fielddefs})

    def t(self, kind: str, **fields: Any) -> Any:
        return self.store.types[kind](**fields)

    def time(self, ns: int) -> Any:
        return self.t("builtin_interfaces/msg/Time", sec=ns // NS, nanosec=ns % NS)

    def header(self, ns: int) -> Any:
        return self.t("std_msgs/msg/Header", stamp=self.time(ns), frame_id="")

    def blank(self, kind: str) -> Any:
        """A message with zeros, empty texts and sequences."""
        values: dict[str, Any] = {}
        for name, (node, detail) in self.store.fielddefs[kind][1]:
            values[name] = self._zero(int(node), detail)
        return self.t(kind, **values)

    def _zero(self, node: int, detail: Any) -> Any:
        if node == 1:
            base = detail[0]
            return "" if base == "string" else False if base == "bool" else 0.0 if base.startswith("float") else 0
        if node == 2:
            return self.blank(detail)
        inner = detail[0]
        base = inner[1][0] if int(inner[0]) == 1 else ""
        return np.zeros(0, dtype=base) if base and base != "string" else []

    def filled(self, kind: str, **fields: Any) -> Any:
        message = self.blank(kind)
        for name, value in fields.items():
            assert hasattr(message, name), name
            setattr(message, name, value)
        return message


_FABRIC: list[Fabric] = []


def fabric() -> Fabric:
    if not _FABRIC:
        _FABRIC.append(Fabric())
    return _FABRIC[0]


def joints_at(t_s: float) -> tuple[np.ndarray, np.ndarray]:
    """(7,) rad, (7,) rad/s: a slow swing around the ready pose that starts and ends at rest-like speed."""
    c = fabric().contract
    w = 2.0 * math.pi / 3.0
    shape = np.array([0.20, 0.08, 0.10, 0.08, 0.10, 0.08, 0.10])
    return c.poses.ready_rad + shape * math.sin(w * t_s), shape * w * math.cos(w * t_s)


def picture(rng: np.random.Generator, width: int, height: int, t_s: float) -> np.ndarray:
    """(H, W, 3) uint8: a moving square on a gradient, with sensor noise."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([60 + x * 100 / width, 60 + y * 100 / height, 90 + 0 * x], axis=-1)
    image += rng.integers(-4, 5, (height, width, 1))
    left = int((0.5 + 0.3 * math.sin(2.0 * t_s)) * width)
    image[height // 3 : height // 2, left : left + width // 8] = (220, 40, 30)
    return image.clip(0, 255).astype(np.uint8)


def messages(seconds: float, seed: int, namespace: str = "/vla", coding: Coding | None = None) -> list[Made]:
    """A good episode, in the order of receipt."""
    f, rng, made = fabric(), np.random.default_rng(seed), []
    c, coding = f.contract, coding or Coding()
    text, done_s = "pick up the red cube", seconds - DONE_BEFORE_END_S

    def at(t_s: float) -> int:
        return START_NS + round(t_s * NS)

    def add(name: str, t_s: float, delay_s: float, message: Any) -> None:
        if 0.0 <= t_s <= seconds:
            made.append(Made(f"{namespace}/{name}", at(t_s + delay_s), message))

    def jitter(scale_s: float) -> float:
        return float(rng.exponential(scale_s))

    for camera in c.cameras:
        frames = [picture(rng, camera.width_px, camera.height_px, k * 0.2) for k in range(8)]
        for k in range(int(seconds * camera.rate_hz)):
            t_s = k / camera.rate_hz
            rgb = frames[k % len(frames)].copy()
            rgb[:8, :8] = rng.integers(0, 255, (8, 8, 3))  # no two frames of a camera are equal
            image = f.t(
                "sensor_msgs/msg/CompressedImage", header=f.header(at(t_s)), format=coding.format,
                data=np.frombuffer(coding.encode(rgb), dtype=np.uint8),
            )  # fmt: skip
            add(f"{camera.topic}/compressed", t_s, 0.012 + jitter(0.003), image)
    for k in range(int(seconds * RATES_HZ["joint_states"])):
        t_s = k / RATES_HZ["joint_states"]
        q, qd = joints_at(t_s)
        joint_state = f.t(
            "sensor_msgs/msg/JointState", header=f.header(at(t_s)), name=[*c.joint_names, c.gripper.joint],
            position=np.append(q, 0.04), velocity=np.append(qd, 0.0), effort=np.zeros(0),
        )  # fmt: skip
        add("joint_states", t_s, 0.0005 + min(jitter(0.0003), 0.0015), joint_state)  # never out of turn
    for k in range(int(seconds * RATES_HZ["safe_command"])):
        t_s = k / RATES_HZ["safe_command"]
        q, qd = joints_at(t_s)
        moving = INSTRUCTION_AT_S < t_s < done_s
        command = f.t(
            KINDS["safe_command"], stamp=f.time(at(t_s)), sequence=k + 1, writer_id=7, rearm_counter=1,
            position=q, velocity=qd, gripper_width=0.08, mode=1 if moving else 0,
        )  # fmt: skip
        add("safe_command", t_s, 0.0007 + jitter(0.0003), command)
    phases = [("idle", 0.0), ("waiting", INSTRUCTION_AT_S), ("moving", INSTRUCTION_AT_S + 0.3), ("done", done_s)]
    times = sorted({*np.arange(0.0, seconds, 0.1).round(3), *(s for _, s in phases)})
    for t_s in times:
        phase = [name for name, since in phases if since <= t_s][-1]
        open_id = 5 if phase in ("waiting", "moving") else 0
        state = f.filled(
            KINDS["safety_state"], stamp=f.time(at(t_s)), writer_id=7, phase=phase, speed_scale=1.0,
            instruction_id=open_id, text=text if open_id else "", ticks=max(int(t_s * 100), 0),
        )  # fmt: skip
        add("safety_state", t_s, 0.001, state)
    for k in range(int(seconds * RATES_HZ["perception_status"])):
        status = f.t(KINDS["perception_status"], stamp=f.time(at(k / 20)), reason="", contract_hash=c.hash)
        add("perception_status", k / 20, 0.001, status)
    add("instruction", INSTRUCTION_AT_S, 0.001, f.t(KINDS["instruction"], instruction_id=5, text=text))
    add("instruction", done_s, 0.001, f.t(KINDS["instruction"], instruction_id=0, text=""))
    add("policy_status", INSTRUCTION_AT_S, 0.01, f.filled(
        KINDS["policy_status"], stamp=f.time(at(INSTRUCTION_AT_S)), writer_id=9, ready=True, instruction_id=5,
        verdict=1, precision="int8", checkpoint_hash="ab" * 32, contract_hash=c.hash,
    ))  # fmt: skip
    for k in range(int(seconds * 10)):
        arm = f.t(KINDS["arm_state"], stamp=f.time(at(k / 10)), writer_id=8, supervisor_id=7, ready=True,
                  latched=False, reason="", rearm_counter=1)  # fmt: skip
        add("arm_state", k / 10, 0.001, arm)
    rows, cols = c.action.rows, c.action.cols
    stride = 2
    stamps = [k / c.cameras[0].rate_hz for k in range(0, int(seconds * c.cameras[0].rate_hz), stride)]
    for k, t_s in enumerate(s for s in stamps if INSTRUCTION_AT_S < s < done_s - 0.1):
        chunk = f.t(
            KINDS["action_chunk"], stamp=f.time(at(t_s)), writer_id=9, instruction_id=5, sequence=k + 1,
            contract_hash=c.hash, space=int(c.action.space), dt=c.action.dt_s, rows=rows, cols=cols,
            data=rng.normal(0.0, 0.01, rows * cols).astype(np.float32), committed_rows=0, inference_time=0.03,
            confidence=0.9, done_probability=0.1,
        )  # fmt: skip
        add("action_chunk", t_s, 0.055, chunk)
    return sorted(made, key=lambda m: m.log_ns)


def topics(namespace: str = "/vla") -> list[Topic]:
    cameras = [f"{camera.topic}/compressed" for camera in fabric().contract.cameras]
    return [
        *(Topic(f"{namespace}/{name}", "sensor_msgs/msg/CompressedImage") for name in cameras),
        *(Topic(f"{namespace}/{name}", kind) for name, kind in KINDS.items()),
    ]


def by_hand(since_s: float = 0.0, until_s: float = math.inf) -> Change:
    """A person drives for a while: the chunks of that time are theirs, and the supervisor says so beside each state."""

    def change(made: Made) -> Iterable[Made]:
        person = since_s <= (made.log_ns - START_NS) / NS < until_s
        if made.topic == "/vla/safety_state":
            said = fabric().t(KINDS["teleoperated"], data=person)
            return (made, made._replace(topic="/vla/teleoperated", message=said))
        return (made._replace(topic="/vla/teleop_chunk") if person and made.topic == "/vla/action_chunk" else made,)

    return change


def episode(**changes: Any) -> Episode:
    c = fabric().contract
    known = {
        "text": "pick up the red cube", "instruction_id": 5, "contract": c.name, "contract_hash": c.hash,
        "policy_hash": "ab" * 32, "outcome": "done", "success": True, "operator": "test", "images": "jpeg 90",
        "recorder": "test",
    }  # fmt: skip
    return Episode(**{**known, **changes})


def make(
    folder: Path,
    name: str,
    seconds: float = 4.0,
    seed: int = 0,
    change: Change | None = None,
    without: Iterable[str] = (),
    flush_s: float = 0.5,
    content: list[Made] | None = None,
    **of_episode: Any,
) -> Path:
    """A kept episode `folder/name`. `without`: tails of topics not recorded. `content`: instead of `messages`."""
    f = fabric()
    absent = tuple(without)
    chosen = [topic for topic in topics() if not topic.name.endswith(absent)] if absent else topics()
    index = {topic.name: k for k, topic in enumerate(chosen)}
    writer = BagWriter(folder, name, chosen, episode(**of_episode))
    flushed_ns = START_NS
    content = messages(seconds, seed) if content is None else content
    out = [m for made in content for m in (change(made) if change else (made,)) if m.topic in index]
    for made in sorted(out, key=lambda m: m.log_ns):
        data = bytes(f.store.serialize_cdr(made.message, made.message.__msgtype__))
        writer.write(index[made.topic], data, made.log_ns)
        if made.log_ns - flushed_ns >= flush_s * NS:
            writer.flush()
            flushed_ns = made.log_ns
    writer.close(episode(recorded_s=seconds, **of_episode))
    return writer.keep(episode(recorded_s=seconds, **of_episode))


def chunks(path: Path) -> list[tuple[int, set[tuple[str, int, bytes]]]]:
    """Of each chunk of an MCAP file the byte at which it ends, and its messages as (topic, log_ns, data).

    By chunk and not by time: the last message of one and the first of the next may have the same time.
    """
    found = []
    with path.open("rb") as stream:
        summary = SeekingReader(stream).get_summary()
        assert summary is not None
        for index in sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset):
            stream.seek(index.chunk_start_offset + 9)  # opcode and length
            records = breakup_chunk(Chunk.read(ReadDataStream(stream)), validate_crc=True)
            held = {
                (summary.channels[m.channel_id].topic, m.log_time, bytes(m.data))
                for m in records
                if isinstance(m, Message)
            }
            found.append((index.chunk_start_offset + index.chunk_length, held))
    return found


# ------------------------------------------------------------------------------------------------ a closed loop


class Reaching:
    """Stands in for a policy's runtime: what it answers depends on pictures, joints and noise, and on nothing else."""

    checkpoint_hash = "cd" * 32

    def __init__(self, towards_m: tuple[float, float, float] = (0.03, 0.02, 0.02)) -> None:
        self._towards = np.array(towards_m)
        self._noise_shape = (1, fabric().contract.action.rows, fabric().contract.action.cols)

    def judge(self, text: str) -> None:
        if "red" not in text:
            raise Refused("only what is red is known")

    def infer(self, observation: Observation, text: str, rng: np.random.Generator) -> PolicyOutput:
        noise = rng.standard_normal(self._noise_shape, dtype=np.float32)[0]
        seen = np.array([float(image.mean()) for image in observation.images.values()]).sum() / 512.0
        data = np.zeros(noise.shape)
        ramp = np.linspace(1.0 / len(data), 1.0, len(data))[:, None]
        data[:, :3] = ramp * (self._towards * seen) + 1e-4 * noise[:, :3]
        data[:, 6] = 1.0
        gone = float(np.abs(observation.q_rad - fabric().contract.poses.ready_rad).max())
        return PolicyOutput(data, 1.0 if gone > 0.08 else 0.0, 0.9, 0.03)


HAND_MOVES_S = (0.5, 0.9)  # of a take-over; before and after the person stands still


def closed_loop(
    seconds: float = 4.0, seed: int = 0, policy_seed: int = 0, taken_s: tuple[float, float] | None = None
) -> list[Made]:
    """What the recorder would hear of a graph in which perception, `Reaching` and the supervisor move an ideal arm.

    `taken_s`: when a person takes over, who lifts the tool by teleoperation, and when they hand back."""
    f, rng, made = fabric(), np.random.default_rng(seed), []
    c, policy, noise = f.contract, Reaching(), np.random.default_rng(policy_seed)
    for _ in range(WARM_UP_CALLS):
        noise.standard_normal((1, c.action.rows, c.action.cols), dtype=np.float32)
    machine, builder = Supervisor(c, Kinematics(c), writer_id=7), ObservationBuilder(c)
    q, qd, period_ns, armed_ticks = c.poses.ready_rad, np.zeros(c.n_joints), round(c.period_s * NS), 60
    frame_ns, frames, sequence, text = round(NS / c.cameras[0].rate_hz), 0, 0, "pick up the red cube"
    chunks: list[tuple[int, Source, Any]] = []
    verdict_ns = 1 << 62
    last_state: tuple[Any, ...] = ()
    hand, hand_moved_s = Teleoperation(c, Kinematics(c)), -math.inf
    turns = {} if taken_s is None else dict(zip((round(s / c.period_s) for s in taken_s), (1, 0), strict=True))

    def chunk_said(name: str, log_ns: int, stamp_ns: int, sequence: int, writer_id: int, data: np.ndarray,
                   done: float) -> None:  # fmt: skip
        chunk = f.t(
            KINDS[name], stamp=f.time(stamp_ns), writer_id=writer_id, instruction_id=1, sequence=sequence,
            contract_hash=c.hash, space=int(c.action.space), dt=c.action.dt_s, rows=c.action.rows, cols=c.action.cols,
            data=data.reshape(-1).astype(np.float32), committed_rows=0, inference_time=0.03, confidence=0.9,
            done_probability=done,
        )  # fmt: skip
        chunks.append((log_ns, recordings.CHUNKS[name], chunk))
        made.append(Made(f"/vla/{name}", log_ns, chunk))

    for k in range(-armed_ticks, round(seconds / c.period_s)):
        now_ns = START_NS + k * period_ns
        now_s, recorded = now_ns / NS, k >= 0
        sample = JointSample(q, qd, 0.08, (now_ns - 500_000) / NS)
        builder.add_joints(sample, now_ns - 1_000_000)
        if recorded:
            joints = f.t(
                "sensor_msgs/msg/JointState", header=f.header(now_ns - 1_000_000),
                name=[*c.joint_names, c.gripper.joint], position=np.append(q, 0.04), velocity=np.append(qd, 0.0),
                effort=np.zeros(0),
            )  # fmt: skip
            made.append(Made("/vla/joint_states", now_ns - 500_000, joints))
        arrived = tuple(recordings.chunk(m, now_s, source=who) for at_ns, who, m in chunks if at_ns <= now_ns)
        chunks[:] = [waiting for waiting in chunks if waiting[0] > now_ns]
        decision = machine.update(
            now_s,
            Inputs(
                joints=sample,
                chunks=arrived,
                rearms=(1,) if k == -5 else (),
                instructs=((2, text, 0),) if k == 30 else (),
                verdicts=((1, True, ""),) if verdict_ns <= now_ns else (),
                sources=((3, Source(turns[k])),) if k in turns else (),
            ),
        )
        verdict_ns = 1 << 62 if verdict_ns <= now_ns else verdict_ns
        assert decision.command is not None
        if decision.publish_instruction is not None and recorded:
            instruction_id, shown = decision.publish_instruction
            made.append(Made("/vla/instruction", now_ns + 500_000,
                             f.t(KINDS["instruction"], instruction_id=instruction_id, text=shown)))  # fmt: skip
            if instruction_id:
                verdict_ns = now_ns + 4_000_000
                status = f.filled(KINDS["policy_status"], stamp=f.time(verdict_ns), writer_id=9, ready=True,
                                  instruction_id=instruction_id, verdict=1, contract_hash=c.hash)  # fmt: skip
                made.append(Made("/vla/policy_status", verdict_ns, status))
        if recorded:
            command = f.t(
                KINDS["safe_command"], stamp=f.time(now_ns), sequence=k + 1, writer_id=7, rearm_counter=1,
                position=decision.command.q_rad, velocity=decision.command.qd_rad_s,
                gripper_width=decision.command.gripper_width_m, mode=int(decision.command.mode),
            )  # fmt: skip
            made.append(Made("/vla/safe_command", now_ns + 700_000, command))
            state_key = (
                decision.severity, decision.reason, decision.phase, decision.instruction_id, decision.source,
            )  # fmt: skip
            if state_key != last_state or k % 10 == 0:
                last_state = state_key
                state = f.filled(
                    KINDS["safety_state"], stamp=f.time(now_ns), writer_id=7, severity=int(decision.severity),
                    reason=decision.reason.value, latched=decision.latched, speed_scale=decision.scale,
                    phase=decision.phase, instruction_id=decision.instruction_id, text=decision.text,
                )  # fmt: skip
                made.append(Made("/vla/safety_state", now_ns + 900_000, state))
                if taken_s is not None:
                    who = f.t(KINDS["teleoperated"], data=decision.source is Source.TELEOPERATION)
                    made.append(Made("/vla/teleoperated", now_ns + 850_000, who))
            for event in decision.events:
                veto = f.t(
                    KINDS["safety_event"], stamp=f.time(now_ns), rule=event.rule, limit=event.limit, value=event.value,
                    index=event.index, chunk_sequence=event.chunk_sequence, text=event.text,
                )  # fmt: skip
                made.append(Made("/vla/safety_event", now_ns + 900_000, veto))
        if recorded and now_ns >= START_NS + frames * frame_ns:
            stamp_ns, log_ns = now_ns - 8_000_000, now_ns + 2_000_000
            for camera in c.cameras:
                rgb = picture(rng, camera.width_px, camera.height_px, k * 0.01)
                builder.add_image(camera.name, rgb, stamp_ns, log_ns, log_ns / NS)
                image = f.t(
                    "sensor_msgs/msg/CompressedImage", header=f.header(stamp_ns), format="rgb8; png compressed bgr8",
                    data=np.frombuffer(Coding("png").encode(rgb), dtype=np.uint8),
                )  # fmt: skip
                made.append(Made(f"/vla/{camera.topic}/compressed", log_ns, image))
            observation = builder.take(log_ns / NS)
            if observation is not None and decision.instruction_id and frames % 2 == 0:
                out, sequence = policy.infer(observation, text, noise), sequence + 1
                chunk_said("action_chunk", log_ns + 45_000_000, stamp_ns, sequence, 9, out.data, out.done_probability)
            frames += 1
        if decision.source is not Source.TELEOPERATION:
            hand.anchor(now_s, sample)
        elif now_s - hand_moved_s >= CHUNK_PERIOD_S:
            hand_moved_s, up = now_s, HAND_MOVES_S[0] <= k * c.period_s - taken_s[0] < HAND_MOVES_S[1]
            hand.move(now_s, Twist(np.array([0.0, 0.0, float(up)]), np.zeros(3)), sample)
            chunk_said("teleop_chunk", now_ns + 3_000_000, now_ns - 500_000, k, 33, hand.chunk(sample), 0.0)
        q, qd = decision.command.q_rad, decision.command.qd_rad_s
    return sorted(made, key=lambda m: m.log_ns)
