"""Rebuilds a bag that was cut off or damaged, from whatever of its MCAP file can still be read.

A chunk whose checksum is right is kept whole. Of a chunk that was cut or damaged, every message is kept that has a
whole record, a known channel, a time that fits and bytes that its type takes; before a cut these are as good as the
others, around a damaged byte they are `unverified`, and said to be so.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Message, Metadata, Schema

from vla_ros.core.errors import Invalid
from vla_ros.data.bag_reader import NS, BagError, Stored, read_information
from vla_ros.data.copying import CopyWriter
from vla_ros.data.definitions import Definitions
from vla_ros.data.episode import IN_FILE, METADATA, Episode
from vla_ros.data.salvage import HEAD, ChunkSpan, consistent, mapped, next_chunk, unpack

MESSAGE_FIELDS = 22  # channel, sequence, two times
NEAR_NS = 60 * NS  # our choice: a message of a damaged chunk this far outside the whole ones has a damaged time
NO_RECORD = (McapError, ValueError, struct.error, EOFError, OverflowError, MemoryError)


@dataclass
class Recovery:
    """What was found, and what was lost."""

    source: str
    target: str = ""
    chunks_whole: int = 0
    chunks_partial: int = 0  # cut off, or damaged
    messages: int = 0  # written
    unverified: int = 0  # of these, from chunks whose checksum is wrong
    undecodable: int = 0  # found, and left out: their type does not take the bytes, or their time is impossible
    bytes_total: int = 0
    bytes_lost: int = 0  # belong to nothing that was kept
    duration_s: float = 0.0
    holes_s: list[tuple[float, float]] = field(default_factory=list)  # around damaged places, from the first message on
    notes: list[str] = field(default_factory=list)
    complete: bool = False  # the file has its end: nothing was missing

    def facts(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def recover(source: Path, target: Path) -> Recovery:
    """`source`: a bag's folder or an MCAP file. Writes the folder `target`, which must not exist.

    Raises `BagError` when there is no MCAP file, `Invalid` for a bad target, `OSError`; never because of what the file
    contains: where nothing can be recovered the new bag is empty, and the report says so.
    """
    files = mcap_files(source)
    report = Recovery(str(source))
    with CopyWriter(target) as copy:
        parts = [_File(path, report) for path in files]
        for part in parts:
            part.copy_to(copy)
        if not report.messages:
            report.notes.append(f"{report.bytes_total} bytes hold no whole message")
        report.duration_s = (copy.span.last_ns - copy.span.first_ns) / NS
        report.complete = all(part.complete for part in parts) and not (report.bytes_lost or report.chunks_partial)
        report.target = str(target)
        copy.keep(_custom_data(source, parts, report))
    return report


def mcap_files(source: Path) -> list[Path]:
    source = source.expanduser()
    files = [source] if source.is_file() else sorted(source.glob("*.mcap")) if source.is_dir() else []
    if not files:
        raise BagError(f"{source}: no MCAP file; allowed: the folder of a bag, or an .mcap file")
    return files


def _custom_data(source: Path, parts: list[_File], report: Recovery) -> dict[str, str]:
    """Of metadata.yaml where it is left, else of the records in the file; and what recovery did."""
    known: dict[str, str] = {}
    for part in parts:
        known.update(part.custom_data)
    try:
        custom = read_information(source / METADATA).get("custom_data") or {}
        known.update({str(key): str(value) for key, value in custom.items()})
    except BagError:
        report.notes.append(f"no readable {METADATA}: what is known of the episode is from its start")
    try:
        Episode.from_custom_data(known)
    except Invalid as error:
        report.notes.append(f"what was stored about the episode is damaged: {error}")
        known = {}
    if not report.complete and not known.get("closed"):
        known["closed"] = "cut off; recovered"
    lost = {"messages": report.messages, "unverified": report.unverified, "undecodable": report.undecodable,
            "bytes_lost": report.bytes_lost, "holes_s": report.holes_s}  # fmt: skip
    return {**known, "recovered": json.dumps(lost)}


class _File:
    """One MCAP file. Two passes: where the chunks are and which are whole, then the messages."""

    def __init__(self, path: Path, report: Recovery) -> None:
        self._report = report
        self.complete = False
        self.custom_data: dict[str, str] = {}
        self._definitions = Definitions(report.notes)
        self._bytes = mapped(path)
        report.bytes_total += len(self._bytes)
        self._chunks = list(self._scan())

    # -- finding chunks --------------------------------------------------------------------------------------

    def _scan(self) -> Iterator[ChunkSpan]:
        data, at, size = self._bytes, 8, len(self._bytes)
        while at + HEAD <= size:
            opcode, length = data[at], int.from_bytes(data[at + 1 : at + HEAD], "little")
            end = at + HEAD + length
            if end <= size and self._take(opcode, at + HEAD, end):
                if opcode == Opcode.CHUNK:
                    unpacked = unpack(data[at + HEAD : end])
                    if unpacked is not None and unpacked[1]:
                        yield ChunkSpan(at + HEAD, end, True, False)
                        at = end
                        continue
                else:
                    self.complete |= opcode == Opcode.FOOTER
                    at = end
                    if self.complete:
                        return
                    continue
            until = next_chunk(data, at + 1)
            if opcode == Opcode.CHUNK and unpack(data[at + HEAD : until]) is not None:
                yield ChunkSpan(at + HEAD, until, False, cut=end > size and until == size and consistent(data, at))
            else:
                self._report.bytes_lost += until - at
            at = until

    def _take(self, opcode: int, start: int, end: int) -> bool:
        """Is this a record at all? Definitions and metadata outside chunks are remembered."""
        if opcode == Opcode.CHUNK:
            return True
        try:
            if opcode == Opcode.MESSAGE_INDEX:
                return int.from_bytes(self._bytes[start + 2 : start + 6], "little") == end - start - 6
            stream = ReadDataStream(io.BytesIO(self._bytes[start:end]))
            if opcode == Opcode.METADATA:
                self._take_metadata(Metadata.read(stream))
            else:
                self._definitions.take(opcode, stream, trusted=False)
            return Opcode.HEADER <= opcode <= Opcode.DATA_END
        except NO_RECORD:
            return False

    def _take_metadata(self, record: Metadata) -> None:
        if record.name == IN_FILE:
            self.custom_data = {**record.metadata, **self.custom_data}
        elif record.name == "rosbag2":  # written at the end, newer
            try:
                content = yaml.safe_load(record.metadata.get("serialized_metadata", ""))
                custom = content["custom_data"] or {}
            except (yaml.YAMLError, KeyError, TypeError):
                return
            self.custom_data.update({str(key): str(value) for key, value in custom.items()})

    # -- messages --------------------------------------------------------------------------------------------

    def copy_to(self, copy: CopyWriter) -> None:
        low, high = self._first_pass()
        for channel in self._definitions.channels.values():
            schema = self._definitions.schema(channel)
            if schema is not None:
                copy.add_topic(channel, schema)
        last_ns, after_damage = 0, False
        for chunk in self._chunks:
            kept = list(self._kept(chunk, low, high))
            self._report.chunks_whole += chunk.crc_ok
            self._report.chunks_partial += not chunk.crc_ok
            if not chunk.crc_ok and not chunk.cut:
                self._report.unverified += len(kept)
                after_damage = True
            elif kept:
                if after_damage and last_ns:
                    self._hole(copy.span.first_ns, last_ns, kept[0][0].log_ns)
                after_damage, last_ns = False, kept[-1][0].log_ns
            for stored, channel, schema in kept:
                copy.write(stored, channel, schema)
            self._report.messages += len(kept)

    def _first_pass(self) -> tuple[int, int]:
        """Takes every definition before the first message is judged; the times [ns] that messages may have."""
        sure: list[int] = []
        others: list[int] = []
        for chunk in self._chunks:
            times = [m.log_time for m in self._records(chunk, defining=True)]
            if chunk.crc_ok and times:
                sure += [min(times), max(times)]
            others += times
        self._definitions.drop_what_is_not_sure()
        others.sort()
        sure = sure or others[len(others) // 2 : len(others) // 2 + 1]
        return (min(sure) - NEAR_NS, max(sure) + NEAR_NS) if sure else (0, 0)

    def _kept(self, chunk: ChunkSpan, low_ns: int, high_ns: int) -> Iterator[tuple[Stored, Channel, Schema]]:
        for m in self._records(chunk):
            channel = self._definitions.channels.get(m.channel_id)
            schema = None if channel is None else self._definitions.schema(channel)
            sound = chunk.crc_ok or (low_ns <= m.log_time <= high_ns and self._definitions.fits(m, schema))
            if channel is None or schema is None or not sound:
                self._report.undecodable += 1
                continue
            yield Stored(channel.topic, m.log_time, m.publish_time, m.sequence, m.data), channel, schema

    def _hole(self, first_ns: int, last_ns: int, next_ns: int) -> None:
        self._report.holes_s.append((round((last_ns - first_ns) / NS, 3), round((next_ns - first_ns) / NS, 3)))

    def _records(self, chunk: ChunkSpan, defining: bool = False) -> Iterator[Message]:
        """Messages. What is no record is skipped up to the next message; it is counted in the second pass only."""
        unpacked = unpack(self._bytes[chunk.start : chunk.end])
        data, at = unpacked[0] if unpacked is not None else b"", 0
        while at + HEAD <= len(data):
            opcode, length = data[at], int.from_bytes(data[at + 1 : at + HEAD], "little")
            end = at + HEAD + length
            try:
                if end > len(data) or opcode not in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
                    raise EOFError
                stream = ReadDataStream(io.BytesIO(data[at + HEAD : end]))
                if opcode == Opcode.MESSAGE:
                    yield Message.read(stream, length)
                elif defining:
                    self._definitions.take(opcode, stream, chunk.crc_ok or chunk.cut)
            except NO_RECORD:
                end = self._next_message(data, at + 1)
                self._report.bytes_lost += 0 if defining else end - at
            at = end

    def _next_message(self, data: bytes, at: int) -> int:
        """Where a record of a known channel begins, with a length that fits; else the end."""
        while (at := data.find(b"\x05", at)) >= 0:
            length = int.from_bytes(data[at + 1 : at + HEAD], "little")
            channel = int.from_bytes(data[at + HEAD : at + HEAD + 2], "little")
            if MESSAGE_FIELDS <= length <= len(data) - at - HEAD and channel in self._definitions.channels:
                return at
            at += 1
        return len(data)
