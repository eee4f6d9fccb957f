"""Message definitions of ROS types, from the files that every ROS 2 installation has below share/<package>/msg.

As MCAP wants them (encoding `ros2msg`): the type's own text, then the text of each type that it needs, each behind a
line of 80 `=` and one that names it.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from vla_ros import paths
from vla_ros.core.errors import Invalid

PRIMITIVES = {
    *("bool", "byte", "char", "float32", "float64", "string", "wstring"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}
FIELD = re.compile(r"^\s*([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+\w+")
SEPARATOR = "=" * 80


@dataclass(frozen=True, slots=True)
class Schema:
    """`text` is complete: it needs no other file. `type_hash` (RIHS01) is empty where the installation has none."""

    name: str  # package/msg/Type
    text: str
    type_hash: str


@functools.lru_cache(maxsize=256)
def schema(name: str) -> Schema:
    """Of `package/msg/Type`. Raises Invalid, naming what is missing and where it was looked for."""
    texts = {name: _file(name, ".msg").read_text(encoding="utf-8")}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        for needed in _needs(current, texts[current]):
            if needed not in texts:
                texts[needed] = _file(needed, ".msg").read_text(encoding="utf-8")
                waiting.append(needed)
    parts = [texts.pop(name), *(f"{SEPARATOR}\nMSG: {_short(key)}\n{text}" for key, text in texts.items())]
    return Schema(name, "\n".join(part.rstrip("\n") for part in parts) + "\n", _type_hash(name))


def _short(name: str) -> str:
    package, _, kind = name.split("/")
    return f"{package}/{kind}"


def _needs(name: str, text: str) -> list[str]:
    package = name.partition("/")[0]
    found = []
    for line in text.splitlines():
        match = FIELD.match(line.partition("#")[0])
        if match is None or match.group(1) in PRIMITIVES:
            continue
        parts = match.group(1).split("/")
        found.append(f"{parts[0] if len(parts) > 1 else package}/msg/{parts[-1]}")
    return found


def _file(name: str, suffix: str) -> Path:
    match = re.fullmatch(r"(\w+)/msg/(\w+)", name)
    if match is None:
        raise Invalid("message type", name, "package/msg/Type")
    searched = [prefix / "share" / match.group(1) / "msg" / f"{match.group(2)}{suffix}" for prefix in paths.prefixes()]
    for path in searched:
        if path.is_file():
            return path
    raise Invalid("message type", name, f"installed; looked for {', '.join(map(str, searched))}")


def _type_hash(name: str) -> str:
    """From the type description beside the definition; ROS 2 Humble has none."""
    try:
        hashes = json.loads(_file(name, ".json").read_text(encoding="utf-8"))["type_hashes"]
    except (Invalid, KeyError, ValueError):
        return ""
    return next((str(h["hash_string"]) for h in hashes if h["type_name"] == name), "")
