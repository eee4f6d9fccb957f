"""Types and topics of a file that may be damaged: which of their definitions can be believed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Message, Schema
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from vla_ros.core.errors import Invalid
from vla_ros.data import ros_schema


class Definitions:
    """Those of one file. `notes` is told of types whose definition is lost."""

    def __init__(self, notes: list[str]) -> None:
        self.channels: dict[int, Channel] = {}
        self._notes = notes
        self._schemas: dict[int, list[Schema]] = {}  # definitions of one id, the more trustworthy first
        self._usable: dict[int, Schema | None] = {}
        self._seen: set[tuple[int, int]] = set()  # opcode and id of definitions
        self._sure: set[tuple[int, int]] = set()
        self._store = get_typestore(Stores.EMPTY)

    def take(self, opcode: int, stream: ReadDataStream, trusted: bool) -> None:
        """A definition is sure when its chunk is whole, or when two copies are equal: in a chunk and at the end."""
        if opcode == Opcode.SCHEMA:
            schema = Schema.read(stream)
            known = self._schemas.setdefault(schema.id, [])
            sure = trusted or schema in known
            known.insert(0 if sure else len(known), schema)
            self._sure |= {(opcode, schema.id)} if sure else set()
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(stream)
            if trusted or self.channels.setdefault(channel.id, channel) == channel:
                # The first of two copies is not sure yet: `seen` tells it from the second.
                if trusted or (opcode, channel.id) in self._seen:
                    self._sure.add((opcode, channel.id))
                self.channels[channel.id] = channel
            self._seen.add((opcode, channel.id))

    def drop_what_is_not_sure(self) -> None:
        """Readers refuse a bag whose hash or QoS is damaged, and take one without."""
        for key, channel in self.channels.items():
            if (Opcode.CHANNEL, key) not in self._sure:
                channel.metadata.clear()

    def schema(self, channel: Channel) -> Schema | None:
        """The first definition of its type that can be read; one that may be damaged only if none is installed."""
        key = channel.schema_id
        if key not in self._usable:
            known = self._schemas.get(key, [])
            installed = self._installed(known)
            ordered = (*known, *installed) if (Opcode.SCHEMA, key) in self._sure else (*installed, *known)
            self._usable[key] = next((s for s in ordered if self._registers(s)), None)
            if self._usable[key] is None:
                self._notes.append(f"{channel.topic}: left out, the definition of its type is lost or damaged")
        return self._usable[key]

    def _installed(self, known: list[Schema]) -> Iterator[Schema]:
        for damaged in known:
            with contextlib.suppress(Invalid):
                yield Schema(damaged.id, ros_schema.schema(damaged.name).text.encode(), "ros2msg", damaged.name)

    def _registers(self, schema: Schema) -> bool:
        try:
            types = get_types_from_msg(schema.data.decode(), schema.name)
            self._store.register({k: v for k, v in types.items() if k not in self._store.fielddefs})
        except (TypesysError, ValueError, KeyError):
            return False
        return bool(schema.encoding == "ros2msg")

    def fits(self, message: Message, schema: Schema | None) -> bool:
        """Whether the type takes the bytes."""
        if schema is None:
            return False
        try:
            self._store.deserialize_cdr(message.data, schema.name)
        except Exception:  # noqa: BLE001 - damaged bytes make the reader raise anything
            return False
        return True
