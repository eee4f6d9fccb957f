"""Makes and serialises ROS messages without ROS, from the definitions that bags embed: for episodes made in process."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vla_ros.data.ros_schema import schema

NS = 1_000_000_000
PRIMITIVE, NESTED = 1, 2  # kinds of fields in a rosbags type store


class Messages:
    """Types are looked up as they are needed. One thread."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.EMPTY)

    def make(self, kind: str, **fields: Any) -> Any:
        """A message of `package/msg/Type`; what is not given is zero, empty or blank. Raises TypeError for a field that
        it does not have, and Invalid for an unknown type."""
        if kind not in self._store.fielddefs:
            found = get_types_from_msg(schema(kind).text, kind)
            self._store.register({name: t for name, t in found.items() if name not in self._store.fielddefs})
        blank = {name: self._blank(int(node), detail) for name, (node, detail) in self._store.fielddefs[kind][1]}
        return self._store.types[kind](**(blank | fields))

    def _blank(self, node: int, detail: Any) -> Any:
        if node == PRIMITIVE:
            base = str(detail[0])
            return "" if base == "string" else False if base == "bool" else 0.0 if base.startswith("float") else 0
        if node == NESTED:
            return self.make(detail)
        inner = detail[0]
        base = str(inner[1][0]) if int(inner[0]) == PRIMITIVE else "string"
        return [] if base == "string" else np.zeros(0, dtype=base)

    def time(self, ns: int) -> Any:
        return self.make("builtin_interfaces/msg/Time", sec=ns // NS, nanosec=ns % NS)

    def header(self, ns: int) -> Any:
        return self.make("std_msgs/msg/Header", stamp=self.time(ns))

    def cdr(self, message: Any) -> bytes:
        return bytes(self._store.serialize_cdr(message, message.__msgtype__))


@functools.lru_cache(maxsize=1)
def messages() -> Messages:
    """The one of this process: parsing definitions takes longer than making messages."""
    return Messages()
