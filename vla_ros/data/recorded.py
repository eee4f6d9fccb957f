"""What a supervisor was told and what it said, out of a bag, in the order of receipt."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.types import ActionSpace, Chunk, FloatArray, Severity, Source
from vla_ros.data.bag_reader import Bag, BagError, stamp_ns

NS = 1_000_000_000
LAST_NS = (1 << 63) - 1  # of what a message can say
CHUNKS = {"action_chunk": Source.POLICY, "teleop_chunk": Source.TELEOPERATION}  # as the supervisor node subscribes
INPUTS = (*CHUNKS, "instruction", "policy_status", "arm_state", "perception_status", "reduced_speed")
RESULTS = ("safety_state", "safety_event", "teleoperated")


@dataclass
class Recorded:
    """By short topic name `messages` and when each was heard; commands by the stamp of their tick."""

    tick_ns: list[int] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    log_ns: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, list[Any]] = field(default_factory=dict)

    def heard(self, name: str, after_ns: int = 0, until_ns: int = LAST_NS) -> Iterable[tuple[int, Any]]:
        """(time of receipt [ns], message) of one topic, in (after_ns, until_ns]."""
        logs, messages = self.log_ns.get(name, []), self.messages.get(name, [])
        part = slice(bisect.bisect_right(logs, after_ns), bisect.bisect_right(logs, until_ns))
        return zip(logs[part], messages[part], strict=True)

    def between(self, name: str, after_ns: int, until_ns: int) -> list[Any]:
        return [message for _, message in self.heard(name, after_ns, until_ns)]


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


def chunk(
    message: Any,
    now_s: float,
    data: FloatArray | None = None,
    done: float | None = None,
    source: Source = Source.POLICY,
) -> Chunk:
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
        source=source,
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
