"""The supervisor over a recorded episode: the same pure machine, ticked at the recorded times, fed what was recorded.

Services are not in a bag. What an operator asked for is read from what followed: a rearm from the counter of the
commands, an instruction from the one that the supervisor published, a cancel and an interrupt from its states. A
planned move (home, retreat) leaves no such trace: the replay ends where one begins.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.decision import Inputs, SpeedMode
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.supervisor import Supervisor
from vla_ros.core.types import (
    ActionSpace,
    ArmStatus,
    Chunk,
    CommandMode,
    FloatArray,
    JointSample,
    PerceptionStatus,
    Severity,
)
from vla_ros.data.bag_reader import Bag, BagError, Stored, stamp_ns

NS = 1_000_000_000
PRE_ROLL_S = 1.0  # our choice: before the first recorded tick the arm is taken to have stood, long enough for a rearm
AT_REST_RAD_S = 1e-3  # as the supervisor node: a replay begins where the arm was commanded to stand
SAME_RAD = 1e-6  # below: not worth a forward kinematics
HEARTBEAT_ALIVE = 1  # msg/SafetyState
VERDICT_ACCEPTED = 1  # msg/PolicyStatus


@dataclass
class Supervised:
    """What the supervisor commanded and vetoed. Arrays over the k ticks that were replayed."""

    tick_ns: list[int] = field(default_factory=list)
    q_rad: list[FloatArray] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)  # SafetyEvents by rule
    holds: Counter[str] = field(default_factory=Counter)  # how often HOLD or worse began, by reason
    notes: list[str] = field(default_factory=list)


@dataclass
class Recorded:
    """The same of the recording, and the recorded inputs in the order of receipt."""

    tick_ns: list[int] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    log_ns: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, list[Any]] = field(default_factory=dict)

    def between(self, name: str, after_ns: int, until_ns: int) -> Sequence[Any]:
        logs = self.log_ns.get(name, [])
        return self.messages.get(name, [])[bisect.bisect_right(logs, after_ns) : bisect.bisect_right(logs, until_ns)]


INPUTS = ("action_chunk", "instruction", "policy_status", "arm_state", "perception_status", "reduced_speed")
RESULTS = ("safety_state", "safety_event")


def read(bag: Bag, contract: Contract) -> Recorded:
    """Raises `BagError` without commands or joint states."""
    recorded = Recorded()
    names = {bag.find(name): name for name in (*INPUTS, *RESULTS, "safe_command", contract.arm.joint_state_topic)}
    names.pop(None, None)
    for message in bag.messages([topic for topic in names if topic]):
        name = names[message.topic]
        if name == "safe_command":
            command = bag.decode(message)
            at_ns = stamp_ns(command.stamp)
            if not recorded.tick_ns or at_ns > recorded.tick_ns[-1]:
                recorded.tick_ns.append(at_ns)
                recorded.commands.append(command)
            continue
        recorded.log_ns.setdefault(name, []).append(message.log_ns)
        # Joint states are many, and only the newest before a tick is used.
        content: Any = message if name == contract.arm.joint_state_topic else bag.decode(message)
        recorded.messages.setdefault(name, []).append(content)
    for name in ("safe_command", contract.arm.joint_state_topic):
        if not (recorded.tick_ns if name == "safe_command" else recorded.messages.get(name)):
            raise BagError(f"{bag.folder}: no message on {name}: the supervisor cannot be replayed")
    return recorded


def chunk(message: Any, now_s: float, data: FloatArray | None = None, done: float | None = None) -> Chunk:
    """As `nodes.conversions.chunk`, on a clock whose zero is that of ROS time. `data`: other rows than the recorded."""
    rows = np.asarray(message.data, dtype=np.float64).reshape(message.rows, message.cols) if data is None else data
    return Chunk(
        observed_at_s=min(stamp_ns(message.stamp) / NS, now_s),
        writer_id=message.writer_id,
        instruction_id=message.instruction_id,
        sequence=message.sequence,
        contract_hash=message.contract_hash,
        space=ActionSpace(message.space),
        dt_s=round(float(message.dt), 6),
        data=rows,
        committed_rows=message.committed_rows,
        inference_s=float(message.inference_time),
        confidence=float(message.confidence),
        done_probability=float(message.done_probability) if done is None else done,
    )


def holds(states: Iterable[Any]) -> Counter[str]:
    """How often a reason of HOLD or worse began, from recorded states or decisions."""
    found: Counter[str] = Counter()
    last = ""
    for state in states:
        reason = getattr(state.reason, "value", state.reason)
        now = reason if state.severity >= Severity.HOLD else ""
        if now and now != last:
            found[now] += 1
        last = now
    return found


class Resupervisor:
    """One episode through one supervisor. `chunk_of` makes the chunk that is fed in place of a recorded message."""

    def __init__(
        self, bag: Bag, contract: Contract, recorded: Recorded, chunk_of: Callable[[Any, float], Chunk] = chunk
    ) -> None:
        self._bag, self._contract, self._recorded, self._chunk_of = bag, contract, recorded, chunk_of
        self._machine = Supervisor(contract, Kinematics(contract), writer_id=1)
        self._reader = JointStateReader(contract)
        self._token = 0
        self._arm: ArmStatus | None = None
        self._perception: PerceptionStatus | None = None
        self._speed: SpeedMode | None = None
        self._instruction_id = 0
        self._heartbeat = False

    def run(self) -> Supervised:
        recorded, done = self._recorded, Supervised()
        first = next(
            (k for k, c in enumerate(recorded.commands) if float(np.abs(c.velocity).max()) < AT_REST_RAD_S), None
        )
        if first is None:
            raise BagError(f"{self._bag.folder}: the arm is never commanded to stand: there is no tick to begin from")
        last = self._last_tick(first, done)
        if first:
            done.notes.append(
                f"the replay begins {(recorded.tick_ns[first] - recorded.tick_ns[0]) / NS:.2f} s late, at rest"
            )
        self._stand_before(first)
        states: list[Any] = []
        actions = self._operator(first)
        counter = recorded.commands[first].rearm_counter
        for k in range(first, last):
            inputs = self._inputs(k, actions.get(k, {}))
            if recorded.commands[k].rearm_counter > counter:
                counter = recorded.commands[k].rearm_counter
                inputs = dataclasses.replace(inputs, rearms=(self._next_token(),))
            decision = self._machine.update(recorded.tick_ns[k] / NS, inputs)
            states.append(decision)
            done.events.update(event.rule for event in decision.events)
            if decision.command is not None:
                done.tick_ns.append(recorded.tick_ns[k])
                done.q_rad.append(decision.command.q_rad)
            for reply in decision.replies:
                if not reply.accepted:
                    done.notes.append(
                        f"refused at {(recorded.tick_ns[k] - self._bag.start_ns) / NS:.2f} s: {reply.reason}"
                    )
        done.holds = holds(states)
        return done

    def _last_tick(self, first: int, done: Supervised) -> int:
        for state in self._recorded.messages.get("safety_state", []):
            at_ns = stamp_ns(state.stamp)
            if state.phase == "moving" and state.instruction_id == 0 and at_ns > self._recorded.tick_ns[first]:
                done.notes.append(
                    f"the replay ends at {(at_ns - self._bag.start_ns) / NS:.2f} s, where a planned move begins"
                )
                return bisect.bisect_left(self._recorded.tick_ns, at_ns)
        return len(self._recorded.tick_ns)

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _stand_before(self, first: int) -> None:
        """The arm stood where it was commanded to; it had been rearmed, unless the recording begins in a stop."""
        command, first_ns = self._recorded.commands[first], self._recorded.tick_ns[first]
        ids = [m.instruction_id for m in self._recorded.messages.get("instruction", []) if m.instruction_id > 0]
        period_ns = round(self._contract.period_s * NS)
        ticks = round(PRE_ROLL_S * NS) // period_ns
        q, n = np.asarray(command.position, dtype=np.float64), self._contract.n_joints
        for k in range(ticks, 0, -1):
            now_s = (first_ns - k * period_ns) / NS
            arm = ArmStatus(True, False, "", 0, now_s) if "arm_state" in self._recorded.messages else None
            rearm = k == 1 and command.mode != CommandMode.STOP
            heartbeat = now_s if self._contract.operator_heartbeat_required else None
            self._machine.update(
                now_s,
                Inputs(
                    joints=JointSample(q, np.zeros(n), float(command.gripper_width), now_s),
                    rearms=(self._next_token(),) if rearm else (),
                    policy_instruction_id=ids[0] - 1 if k == ticks and ids else None,
                    heartbeat_at_s=heartbeat,
                    arm=arm,
                ),
            )
            self._arm = arm
        self._heartbeat = self._contract.operator_heartbeat_required

    def _operator(self, first: int) -> dict[int, dict[str, Any]]:
        """What to feed at which tick: each request belongs to the tick that published its effect."""
        recorded, actions = self._recorded, {}

        def at(ns: int) -> dict[str, Any]:
            tick = max(bisect.bisect_right(recorded.tick_ns, ns) - 1, first)
            return actions.setdefault(tick, {})

        newest = 0
        for log_ns, m in zip(
            recorded.log_ns.get("instruction", []), recorded.messages.get("instruction", []), strict=True
        ):
            if m.instruction_id > newest:
                newest = m.instruction_id
                at(log_ns)["instruct"] = (newest, m.text)
        before = None
        for state in recorded.messages.get("safety_state", []):
            ns = stamp_ns(state.stamp)
            if before is not None and ns >= recorded.tick_ns[first]:
                if state.reason == "interrupt" and before.reason != "interrupt":
                    at(ns)["interrupt"] = True
                closed = before.instruction_id > 0 and state.instruction_id == 0
                if closed and state.phase not in ("done", "stopped"):
                    at(ns)["close"] = before.instruction_id
            before = state
        return actions

    def _inputs(self, k: int, action: dict[str, Any]) -> Inputs:
        recorded = self._recorded
        now_ns = recorded.tick_ns[k]
        after_ns = recorded.tick_ns[k - 1] if k else now_ns - round(self._contract.period_s * NS)
        now_s = now_ns / NS
        chunks = tuple(self._chunk_of(m, now_s) for m in recorded.between("action_chunk", after_ns, now_ns))
        verdicts = tuple(
            (m.instruction_id, m.verdict == VERDICT_ACCEPTED, m.reason)
            for m in recorded.between("policy_status", after_ns, now_ns)
            if m.verdict
        )
        if "policy_status" not in recorded.messages and self._instruction_id:  # nobody recorded the judgement
            verdicts, self._instruction_id = ((self._instruction_id, True, ""),), 0
        for m in recorded.between("arm_state", after_ns, now_ns):
            self._arm = ArmStatus(m.ready, m.latched, m.reason, m.rearm_counter, now_s)
        for m in recorded.between("perception_status", after_ns, now_ns):
            self._perception = PerceptionStatus(m.reason, m.contract_hash, now_s)
        for m in recorded.between("reduced_speed", after_ns, now_ns):
            self._speed = SpeedMode(bool(m.data), now_s)
        for m in recorded.between("safety_state", after_ns, now_ns):
            self._heartbeat = m.heartbeat == HEARTBEAT_ALIVE
        instructs: tuple[tuple[object, str | bytes, int], ...] = ()
        if "instruct" in action:
            self._instruction_id, text = action["instruct"]
            instructs = ((self._next_token(), text, 0),)
        return Inputs(
            joints=self._joints(now_ns),
            chunks=chunks,
            interrupts=int("interrupt" in action),
            instructs=instructs,
            verdicts=verdicts,
            closes=(action["close"],) if "close" in action else (),
            heartbeat_at_s=now_s if self._heartbeat else None,
            speed_mode=self._speed,
            arm=self._arm,
            perception=self._perception,
        )

    def _joints(self, now_ns: int) -> JointSample | None:
        name = self._contract.arm.joint_state_topic
        index = bisect.bisect_right(self._recorded.log_ns[name], now_ns) - 1
        if index < 0:
            return None
        message: Stored = self._recorded.messages[name][index]
        m = self._bag.decode(message)
        try:
            return self._reader.read(m.name, m.position, m.velocity, message.log_ns / NS, m.effort)
        except Invalid:  # as in the node: counts as missing
            return None


def distance(contract: Contract, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[float, float]:
    """(rad, mm): the greatest distance between two poses of the arm, of any joint and of the tool."""
    kinematics, worst_rad, worst_mm = Kinematics(contract), 0.0, 0.0
    for q, other in pairs:
        off = float(np.abs(q - other).max())
        if not math.isfinite(off):
            return math.inf, math.inf
        worst_rad = max(worst_rad, off)
        if off > SAME_RAD:
            _, p0 = kinematics.tool_pose(q)
            _, p1 = kinematics.tool_pose(other)
            worst_mm = max(worst_mm, 1e3 * float(np.linalg.norm(p0 - p1)))
    return worst_rad, worst_mm
