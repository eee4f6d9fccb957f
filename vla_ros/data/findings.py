"""What an audit may find, and what a grade means."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Weight(enum.IntEnum):  # the heaviest finding decides
    MINOR = 1  # worth knowing, harmless for training
    MAJOR = 2  # part of the episode shows something that did not happen so, or not then
    FATAL = 3  # not to be used: another body, no content, values that are no numbers


class Kind(str, enum.Enum):
    """Each with the weight that it has unless the check says otherwise."""

    CONTRACT = "contract"  # another contract, or a picture of another size
    EMPTY = "empty"
    UNREADABLE = "unreadable"  # unknown type, damaged file, message or picture
    MISSING = "missing_topic"
    RATE = "rate"
    GAP = "gap"
    LOST = "lost_frames"
    FROZEN = "frozen"
    BLIND = "blind"  # black, white or flat
    SKEW = "clock_skew"
    DRIFT = "clock_drift"
    STAMPS = "stamps"  # repeated, or running backwards
    NON_FINITE = "non_finite"
    JOINTS = "joints"  # a joint is missing, or jumps
    LIMITS = "limits"  # a command outside the contract's limits
    DROPS = "drops"  # counted by the recorder
    RECOVERED = "recovered"
    METADATA = "metadata"


WEIGHTS = {
    **dict.fromkeys((Kind.CONTRACT, Kind.EMPTY, Kind.UNREADABLE, Kind.MISSING, Kind.NON_FINITE), Weight.FATAL),
    **dict.fromkeys((Kind.LOST, Kind.DROPS, Kind.RECOVERED, Kind.METADATA), Weight.MINOR),
}  # everything else: MAJOR


@dataclass(frozen=True, slots=True)
class Finding:
    """`at_s`: from the bag's first message. `value` and `threshold` are in the unit that `text` names."""

    kind: Kind
    weight: Weight
    topic: str  # empty: the whole bag
    at_s: float
    value: float | str
    threshold: float | str
    text: str

    def facts(self) -> dict[str, object]:
        return {
            "kind": self.kind.value,
            "weight": self.weight.name.lower(),
            "topic": self.topic,
            "at_s": round(self.at_s, 3),
            "value": self.value,
            "threshold": self.threshold,
            "text": self.text,
        }


def finding(
    kind: Kind, text: str, value: float | str, threshold: float | str, topic: str = "", at_s: float = 0.0,
    weight: Weight | None = None,
) -> Finding:  # fmt: skip
    value = round(value, 6) if isinstance(value, float) else value
    return Finding(kind, weight or WEIGHTS.get(kind, Weight.MAJOR), topic, at_s, value, threshold, text)


def grade(findings: Iterable[Finding]) -> str:
    """A: nothing found. B: minor findings only. C: at least one major one. D: a fatal one."""
    return "ABCD"[max((f.weight for f in findings), default=0)]
