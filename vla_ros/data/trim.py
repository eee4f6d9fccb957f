"""Cuts an episode: to a span of time, or to the phase from its instruction to its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ros.core.errors import Invalid
from vla_ros.data.bag_reader import Bag, BagError, Stored, stamp_ns
from vla_ros.data.copying import CopyWriter

NS = 1_000_000_000
MARGIN_S = 0.5  # our choice: around a phase, so that it is seen to begin and to end
ENDED = ("done", "stopped")
# Whose newest message still holds when the span begins: without it the cut episode would not know its text or state.
HELD = ("instruction", "policy_status", "safety_state", "arm_state", "camera_info")


@dataclass(frozen=True)
class Trimmed:
    target: str
    start_s: float  # of the span, from the first message of the source
    end_s: float
    messages: int
    of: int  # messages of the source

    def facts(self) -> dict[str, Any]:
        return {"bag": self.target, "start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3),
                "messages": self.messages, "of": self.of}  # fmt: skip


def phase(bag: Bag, margin_s: float = MARGIN_S) -> tuple[float, float]:
    """(start, end) [s] from the bag's first message: from the episode's instruction to its end, with a margin.

    Raises `BagError` when no instruction was recorded. One that does not end reaches to the end of the bag.
    """
    topic, states = bag.find("instruction"), bag.find("safety_state")
    own = bag.episode().instruction_id
    start_ns, end_ns = None, bag.end_ns
    for message in bag.messages([topic]) if topic else ():
        m = bag.decode(message)
        if start_ns is None:
            if m.instruction_id > 0 and own in (0, m.instruction_id):
                start_ns, own = message.log_ns, m.instruction_id
        elif m.instruction_id != own:  # 0 closes it, another one takes its place
            end_ns = message.log_ns
            break
    if start_ns is None:
        raise BagError(
            f"{bag.folder}: no instruction was recorded{f' with id {own}' if own else ''}: give --start and --end"
        )
    for message in bag.messages([states], start_ns + 1, end_ns) if states else ():
        m = bag.decode(message)
        if m.phase in ENDED and stamp_ns(m.stamp) > start_ns:
            end_ns = message.log_ns
            break
    start_s, end_s = (start_ns - bag.start_ns) / NS - margin_s, (end_ns - bag.start_ns) / NS + margin_s
    return max(start_s, 0.0), min(end_s, bag.duration_s)


def trim(bag: Bag, target: Path, start_s: float, end_s: float) -> Trimmed:
    """Writes the folder `target`, which must not exist. Bounds are included, in seconds from the bag's first message.

    What still holds at the start (instruction, states) is repeated there. Raises `Invalid` for an empty span.
    """
    end_s = min(end_s, bag.duration_s)
    if not 0.0 <= start_s < end_s:
        raise Invalid("start, end", (start_s, end_s), f"0 <= start < end <= {bag.duration_s:.3f} s")
    start_ns, end_ns = bag.start_ns + round(start_s * NS), bag.start_ns + round(end_s * NS)
    held = [topic for topic in bag.topics if topic.rpartition("/")[2] in HELD]
    newest: dict[str, Stored] = {}
    for message in bag.messages(held, None, start_ns - 1) if held else ():
        newest[message.topic] = message
    with CopyWriter(target) as copy:
        for topic in bag.topics:
            copy.add_topic(bag.channels[topic], bag.schema(topic))
        for message in newest.values():
            copy.write(message._replace(log_ns=start_ns), bag.channels[message.topic], bag.schema(message.topic))
        for message in bag.messages(None, start_ns, end_ns):
            copy.write(message, bag.channels[message.topic], bag.schema(message.topic))
        custom = {**bag.custom_data, "trimmed_s": f"{start_s:.3f} to {end_s:.3f}"}
        if "recorded_s" in custom:
            custom["recorded_s"] = str(round(end_s - start_s, 6))
        copy.keep(custom, str(bag.information.get("ros_distro") or ""))
        return Trimmed(str(copy.target), start_s, end_s, copy.span.messages, bag.messages_total)
