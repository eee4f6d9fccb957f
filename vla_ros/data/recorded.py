"""What a supervisor was told and what it said, out of a bag, in the order of receipt."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vla_ros.core import wire
from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.types import Chunk, Severity, Source
from vla_ros.data.bag_reader import Bag, BagError, stamp_ns

NS = 1_000_000_000
LAST_NS = (1 << 63) - 1  # of what a message can say
CHUNKS = {"action_chunk": Source.POLICY, "teleop_chunk": Source.TELEOPERATION}  # as the supervisor node subscribes
INPUTS = (*CHUNKS, "instruction", "policy_status", "arm_state", "perception_status", "reduced_speed")
RESULTS = ("safety_state", "safety_event", "teleoperated")


@dataclass
class Recorded:
    """By short topic name `messages` and when each was heard; commands by the stamp of their tick. `malformed`: chunks
    that make no whole one, which the running supervisor counts and drops, too."""

    tick_ns: list[int] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    log_ns: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, list[Any]] = field(default_factory=dict)
    malformed: int = 0

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
        # Joint states are many, and only the newest before a tick is used.
        content: Any = message if name == contract.arm.joint_state_topic else bag.decode(message)
        if name in CHUNKS and not _whole(content):
            recorded.malformed += 1
            continue
        recorded.log_ns.setdefault(name, []).append(message.log_ns)
        recorded.messages.setdefault(name, []).append(content)
    for name in ("safe_command", contract.arm.joint_state_topic):
        if not (recorded.tick_ns if name == "safe_command" else recorded.messages.get(name)):
            raise BagError(f"{bag.folder}: no message on {name}: the supervisor cannot be replayed")
    return recorded


def _whole(message: Any) -> bool:
    try:
        chunk(message, 0.0)
    except Invalid:
        return False
    return True


def chunk(message: Any, now_s: float, source: Source = Source.POLICY) -> Chunk:
    """On a clock whose zero is that of ROS time; a stamp from the future is of now, as in the running graph."""
    return wire.chunk(message, min(stamp_ns(message.stamp) / NS, now_s), source)


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
