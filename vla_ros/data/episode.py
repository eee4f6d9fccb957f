"""What is known of one recorded episode beside its messages: the custom data of the bag's metadata.yaml.

A folder is `<name>/` with `<name>_0.mcap` and `metadata.yaml`. While it is written, and until it is kept, it is called
`<name>.part/`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla_ros.core.errors import Invalid

PART = ".part"  # end of a folder's name until the episode is kept
METADATA = "metadata.yaml"
IN_FILE = "vla_ros.episode"  # MCAP metadata record with what was known at the start: a bag cut off keeps that much
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
OUTCOMES = ("", "done", "fulfilled", "refused", "timeout", "cancelled", "stopped", "replaced")
TEXT_MAX = 256  # characters, as of an instruction
REASON_MAX, SHORT_MAX, CONTRACT_MAX = 512, 128, 100_000
HASH = re.compile(r"[0-9a-f]{0,64}")  # SHA-256 (hex), or unknown


class State(enum.IntEnum):
    """Of the recorder, as in srv/Record. WAITING: the episode is closed, and neither kept nor discarded yet."""

    IDLE = 0
    RECORDING = 1
    WAITING = 2


def bag_file(folder: Path) -> Path:
    """The one MCAP file of an episode's folder, kept or not."""
    return folder / f"{folder.name.removesuffix(PART)}_0.mcap"


def one_line(text: str, characters_max: int) -> str:
    """What a field of Episode takes of a text that somebody else made."""
    return "".join(c if c.isprintable() else " " for c in text)[:characters_max]


def require_name(name: str) -> None:
    """A folder name that every file system and shell takes as it is."""
    if not NAME.fullmatch(name) or name.endswith(PART):
        raise Invalid(
            "episode name",
            name,
            f"1 to 120 of letters, digits, '.', '_', '-'; first a letter or digit; not ending in {PART}",
        )


@dataclass(frozen=True, slots=True)
class Episode:
    """Empty or None: not known. `drops`: messages lost before they were written, by topic; topics without loss are left
    out. `recorded_s` is the time from start to stop, which is longer than from first to last message."""

    text: str = ""
    instruction_id: int = 0
    contract: str = ""  # name of the robot
    contract_hash: str = ""
    contract_text: str = ""  # the contract's file, so that a bag of another body can be read, and the difference named
    policy_hash: str = ""  # of the checkpoint's weights
    outcome: str = ""  # one of OUTCOMES: how the instruction ended
    outcome_reason: str = ""
    success: bool | None = None  # was the task fulfilled, as the world or a person judges it
    operator: str = ""
    images: str = ""  # how cameras are stored: "jpeg 90", "png"
    closed: str = ""  # why the recording ended early; empty: it was asked to
    recorder: str = ""  # version that wrote it
    recorded_s: float = 0.0
    drops: Mapping[str, int] = field(default_factory=dict)

    def validate(self) -> None:
        for name, limit in (
            *(("text", TEXT_MAX), ("outcome_reason", REASON_MAX), ("closed", REASON_MAX)),
            *((name, SHORT_MAX) for name in ("contract", "operator", "images", "recorder")),
        ):
            value = getattr(self, name)
            if not (isinstance(value, str) and len(value) <= limit and (value.isprintable() or not value)):
                raise Invalid(f"episode.{name}", value, f"at most {limit} printable characters")
        if len(self.contract_text) > CONTRACT_MAX:
            raise Invalid("episode.contract_text", self.contract_text, f"at most {CONTRACT_MAX} characters")
        for name in ("contract_hash", "policy_hash"):
            if not HASH.fullmatch(getattr(self, name)):
                raise Invalid(f"episode.{name}", getattr(self, name), "at most 64 hexadecimal digits")
        if not 0 <= self.instruction_id < 2**64:
            raise Invalid("episode.instruction_id", self.instruction_id, "0 to 2^64 - 1")
        if self.outcome not in OUTCOMES:
            raise Invalid("episode.outcome", self.outcome, f"one of {', '.join(OUTCOMES[1:])}, or empty")
        if self.success not in (None, True, False):
            raise Invalid("episode.success", self.success, "true, false or unknown")
        if not 0.0 <= self.recorded_s < float("inf"):
            raise Invalid("episode.recorded_s", self.recorded_s, "finite, >= 0 [s]")
        for topic, count in self.drops.items():
            if not (isinstance(topic, str) and isinstance(count, int) and count > 0):
                raise Invalid("episode.drops", {topic: count}, "topic -> count > 0")

    def custom_data(self) -> dict[str, str]:
        """For metadata.yaml, whose custom data are strings. Every key is always there."""
        self.validate()
        return {
            **{f.name: str(getattr(self, f.name)) for f in dataclasses.fields(self)},
            "success": "" if self.success is None else json.dumps(self.success),
            "drops": json.dumps(dict(self.drops), sort_keys=True),
        }

    @classmethod
    def from_custom_data(cls, data: Mapping[str, str]) -> Episode:
        """The inverse of `custom_data`. Keys of others are left alone, missing ones are unknown; raises Invalid."""
        values: dict[str, object] = {}
        for name, kind in (("text", str), ("outcome", str), ("instruction_id", int), ("recorded_s", float)):
            values[name] = _read(name, data.get(name, ""), kind)
        for known in dataclasses.fields(cls):
            if known.name not in (*values, "success", "drops"):
                values[known.name] = str(data.get(known.name, ""))
        values["success"] = _read("success", data.get("success") or "null", json.loads)
        values["drops"] = _read("drops", data.get("drops") or "{}", json.loads)
        if not isinstance(values["drops"], dict):
            raise Invalid("episode.drops", values["drops"], "a JSON object, topic -> count")
        episode = cls(**values)  # type: ignore[arg-type]
        episode.validate()
        return episode


def _read(name: str, text: str, kind: object) -> object:
    if kind in (int, float) and not text:
        return kind()  # type: ignore[operator]
    try:
        return kind(text)  # type: ignore[operator]
    except (TypeError, ValueError):
        raise Invalid(f"episode.{name}", text, "as written by the recorder") from None
