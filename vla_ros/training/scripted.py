"""Scripted demonstrations as recorded episodes: the expert drives through the supervisor, and a bag hears it all.

What comes out is what the recorder beside a live graph writes, so that audit, export and training treat it alike, only
sooner: simulated time runs as fast as the machine allows. The sentence may be in words that no policy was taught;
`means` then says in known words what it asks for, and the world judges by that.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from vla_ros import __version__
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.decision import Decision
from vla_ros.core.errors import Invalid
from vla_ros.core.types import Chunk, JointSample, Observation
from vla_ros.data import parallel
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import PART, REASON_MAX, Episode, one_line
from vla_ros.data.images import Coding
from vla_ros.data.ros_messages import NS, messages
from vla_ros.policy.runtime import PolicyOutput
from vla_ros.sim import expert
from vla_ros.sim.world import World
from vla_ros.training.evaluate import meanings
from vla_ros.training.rollout import WRITER_ID, Execution, Rollout

STREAM = 0x5C219  # first number of every seed here: no other scene is drawn from it
OPERATOR = "scripted expert"
TAIL_S = 1.0  # as much as the export takes of what follows: the arm stays
HEARD_NS = 500_000  # joint states and commands are received so long after their stamp; pictures a little later
STATE_EVERY, STATUS_EVERY = 10, 5  # ticks between two SafetyStates, between two PerceptionStatuses
KINDS = {
    "action_chunk": "vla_ros/msg/ActionChunk",
    "safe_command": "vla_ros/msg/SafeCommand",
    "safety_state": "vla_ros/msg/SafetyState",
    "safety_event": "vla_ros/msg/SafetyEvent",
    "instruction": "vla_ros/msg/Instruction",
    "perception_status": "vla_ros/msg/PerceptionStatus",
}


class Expert:
    """The expert behind the interface of a policy. It looks at the world, not at the observation."""

    manifest = SimpleNamespace(prefix_max=0)
    world: World  # given once there is one

    def judge(self, text: str) -> None:
        """It understands what the world was told."""

    def infer(
        self, observation: Observation, text: str, rng: np.random.Generator, prefix: object = None
    ) -> PolicyOutput:
        labels = expert.label(self.world, [self.world.task])
        return PolicyOutput(labels.chunk[0].astype(np.float64), float(labels.done[0]), 1.0, 0.0)


class BagTape:
    """Writes what the graph would publish. One episode, one thread."""

    tail_s = TAIL_S

    def __init__(self, contract: Contract, folder: Path, name: str, text: str, images: str) -> None:
        """Raises Invalid for a bad image coding or a taken name, OSError when the disk refuses."""
        self._contract, self._coding = contract, Coding.parse(images)
        self._about = Episode(
            text=text,
            contract=contract.name,
            contract_hash=contract.hash,
            contract_text=Path(contract.source).read_text(encoding="utf-8"),
            operator=OPERATOR,
            images=images,
            recorder=__version__,
        )
        kinds = {f"{camera.topic}/compressed": "sensor_msgs/msg/CompressedImage" for camera in contract.cameras}
        kinds |= {contract.arm.joint_state_topic: "sensor_msgs/msg/JointState"} | KINDS
        self._index = {name: k for k, name in enumerate(kinds)}
        self._writer = BagWriter(folder, name, [Topic(f"/vla/{n}", kind) for n, kind in kinds.items()], self._about)
        self._ticks, self._flushed_ns, self._first_ns, self._instruction_id = 0, 0, 0, 0

    def _write(self, topic: str, kind: str, at_ns: int, **fields: Any) -> None:
        made = messages()
        self._writer.write(self._index[topic], made.cdr(made.make(kind, **fields)), at_ns)

    def frame(self, pictures: dict[str, np.ndarray], stamp_ns: int) -> None:
        for camera in self._contract.cameras:
            data = np.frombuffer(self._coding.encode(pictures[camera.name]), dtype=np.uint8)
            self._write(
                f"{camera.topic}/compressed",
                "sensor_msgs/msg/CompressedImage",
                stamp_ns + 4 * HEARD_NS,
                header=messages().header(stamp_ns),
                format=self._coding.format,
                data=data,
            )

    def tick(self, joints: JointSample, chunks: Sequence[Chunk], decision: Decision, stamp_ns: int) -> None:
        c, made, heard_ns = self._contract, messages(), stamp_ns + HEARD_NS
        self._first_ns = self._first_ns or stamp_ns
        self._write(
            c.arm.joint_state_topic,
            "sensor_msgs/msg/JointState",
            heard_ns,
            header=made.header(stamp_ns),
            name=[*c.joint_names, c.gripper.joint],
            position=np.append(joints.q_rad, joints.gripper_width_m / 2),  # the other finger mirrors it
            velocity=np.append(joints.qd_rad_s, 0.0),
        )
        for chunk in chunks:
            self._chunk(chunk, heard_ns)
        if decision.publish_instruction is not None:
            number, text = decision.publish_instruction
            self._instruction_id = number or self._instruction_id
            self._write("instruction", KINDS["instruction"], heard_ns, instruction_id=number, text=text)
        if decision.command is not None:
            self._write(
                "safe_command",
                KINDS["safe_command"],
                heard_ns,
                stamp=made.time(stamp_ns),
                sequence=self._ticks + 1,
                writer_id=WRITER_ID,
                rearm_counter=1,
                position=decision.command.q_rad,
                velocity=decision.command.qd_rad_s,
                gripper_width=float(decision.command.gripper_width_m),
                mode=int(decision.command.mode),
            )
        self._report(decision, stamp_ns, heard_ns)
        self._ticks += 1
        if stamp_ns - self._flushed_ns >= NS // 2:
            self._writer.flush()
            self._flushed_ns = stamp_ns

    def _chunk(self, chunk: Chunk, heard_ns: int) -> None:
        self._write(
            "action_chunk",
            KINDS["action_chunk"],
            heard_ns,
            stamp=messages().time(round(chunk.observed_at_s * NS)),
            writer_id=chunk.writer_id,
            instruction_id=chunk.instruction_id,
            sequence=chunk.sequence,
            contract_hash=chunk.contract_hash,
            space=int(chunk.space),
            dt=chunk.dt_s,
            rows=chunk.data.shape[0],
            cols=chunk.data.shape[1],
            data=chunk.data.reshape(-1).astype(np.float32),
            confidence=chunk.confidence,
            done_probability=chunk.done_probability,
        )

    def _report(self, decision: Decision, stamp_ns: int, heard_ns: int) -> None:
        stamp = messages().time(stamp_ns)
        for event in decision.events:
            fields = ("rule", "limit", "value", "index", "chunk_sequence", "text")
            said = {name: getattr(event, name) for name in fields}
            self._write("safety_event", KINDS["safety_event"], heard_ns, stamp=stamp, **said)
        if self._ticks % STATE_EVERY == 0 or decision.publish_instruction is not None:
            self._write(
                "safety_state",
                KINDS["safety_state"],
                heard_ns,
                stamp=stamp,
                writer_id=WRITER_ID,
                severity=int(decision.severity),
                reason=decision.reason.value,
                latched=decision.latched,
                speed_scale=decision.scale,
                instruction_id=decision.instruction_id,
                text=decision.text,
                phase=decision.phase,
                done_probability=decision.done_probability,
                tool_speed=decision.tool_speed_m_s,
                speed_cap=decision.speed_cap_m_s,
                chunks_accepted=decision.counters.chunks_accepted,
                chunks_rejected=decision.counters.chunks_rejected,
                ticks=decision.counters.ticks,
            )
        if self._ticks % STATUS_EVERY == 0:
            status = {"stamp": stamp, "contract_hash": self._contract.hash}
            self._write("perception_status", KINDS["perception_status"], heard_ns, **status)

    def keep(self, outcome: str, success: bool, reason: str, duration_s: float) -> Path:
        known = self._about.custom_data() | {
            "instruction_id": str(self._instruction_id),
            "outcome": outcome,
            "outcome_reason": one_line(reason, REASON_MAX),
            "success": json.dumps(success),
            "recorded_s": str(duration_s),
        }
        about = Episode.from_custom_data(known)
        self._writer.close(about)
        return self._writer.keep(about)


@dataclass(frozen=True)
class Order:
    """One episode to play. Plain data: it goes to another process or machine."""

    folder: Path
    name: str
    seed: tuple[int, ...]
    text: str
    means: str
    robot: str
    images: str

    def __str__(self) -> str:
        return str(self.folder / self.name)


_ROLLOUT: tuple[str, Rollout] | None = None  # one per process


def play(order: Order) -> bool:
    """Play and record one episode; whether it succeeded. Runs in whatever process."""
    global _ROLLOUT
    if _ROLLOUT is None or _ROLLOUT[0] != order.robot:
        leave()
        contract, driver = contracts.load(order.robot), Expert()
        rollout = Rollout(contract, driver, Execution("naive"))  # type: ignore[arg-type]
        driver.world = rollout.world
        _ROLLOUT = order.robot, rollout
    rollout = _ROLLOUT[1]
    shutil.rmtree(order.folder / f"{order.name}{PART}", ignore_errors=True)  # of a process that was killed
    tape = BagTape(contracts.load(order.robot), order.folder, order.name, order.text, order.images)
    done = rollout.run(order.seed, text=order.text, means=order.means, tape=tape)
    outcome = "done" if done.done else "fulfilled" if done.success else "timeout"
    tape.keep(outcome, done.success, done.detail, done.duration_s)
    return done.success


def leave() -> None:
    """Let go of this process's world and its graphics context, which must not outlive the interpreter."""
    global _ROLLOUT
    if _ROLLOUT is not None:
        _ROLLOUT[1].world.close()
        _ROLLOUT = None


def demonstrate(
    out: Path,
    text: str,
    means: str,
    episodes: int,
    seed: int,
    robot: str = "panda",
    images: str = "jpeg 95",
    workers: int = 1,
    ray: str = "",
    console: Console | None = None,
    heldout_pairs: bool = False,
) -> dict[str, Any]:
    """Record episodes of a sentence, or of a template whose objects are taken in turn, below `out`.

    Those that are there already are not played again. `heldout_pairs`: of objects that no demonstration names
    otherwise, see `sim.tasks`. Returns counts. Raises Invalid for sentences that do not go
    together, and parallel.Failed."""
    try:
        asked = meanings(text, means or text, heldout_pairs)
    except ValueError as error:
        raise Invalid("text, means", f"{text!r}, {means!r}", f"a sentence of a known family ({error})") from error
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng([STREAM, seed]).permutation(len(asked))
    orders = []
    for number in range(episodes):
        said, meant = asked[order[number % len(asked)]]
        orders.append(Order(out, f"scripted_{seed}_{number:04d}", (STREAM, seed, number), said, meant, robot, images))
    missing = [order for order in orders if not (out / order.name).is_dir()]
    started_s = time.monotonic()
    bar = {"label": "demonstrations", "quiet": console is None, "console": console}
    try:
        made = parallel.stream(play, missing, workers, ray, done=len(orders) - len(missing), **bar)  # type: ignore[arg-type]
        wins = sum(success for _, success in parallel.values(made))
    finally:
        leave()
    return {
        "out": str(out),
        "episodes": len(orders),
        "played": len(missing),
        "succeeded": wins,
        "seconds": round(time.monotonic() - started_s, 1),
    }
