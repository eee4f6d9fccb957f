"""Chunks of an MCAP file that may be cut off or damaged. Layout of records: mcap.dev/spec."""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.frame
import zstandard

HEAD = 9  # bytes of opcode and length before each record
CHUNK_FIELDS = 28  # start, end, uncompressed size, checksum, before the name of the compression
CHUNK_BYTES_MAX = 1 << 30  # our choice: more is a damaged length
CHUNK_START = re.compile(rb"\x06.{36}(?:\x00\x00\x00\x00|\x03\x00\x00\x00lz4|\x04\x00\x00\x00zstd)", re.DOTALL)


@dataclass(frozen=True)
class ChunkSpan:
    """Where the body of a chunk record lies, or what is left of it. `crc_ok`: it is what was written."""

    start: int
    end: int
    crc_ok: bool
    cut: bool  # the file ends within it; what is there is what was written


def mapped(path: Path) -> Any:
    if path.stat().st_size == 0:
        return b""  # cannot be mapped
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def unpack(body: bytes) -> tuple[bytes, bool] | None:
    """Records of a chunk's body, as far as they go, and whether they are all and right; None where there are none."""
    if len(body) < CHUNK_FIELDS + 12:
        return None
    _, _, size, crc = struct.unpack_from("<QQQI", body)
    name_length = int.from_bytes(body[CHUNK_FIELDS : CHUNK_FIELDS + 4], "little")
    start = CHUNK_FIELDS + 4 + name_length + 8
    if name_length > 4 or start > len(body):
        return None
    stored = int.from_bytes(body[start - 8 : start], "little")
    data = _uncompressed(body[start : start + min(stored, len(body))], body[CHUNK_FIELDS + 4 : start - 8], size)
    whole = stored == len(body) - start and len(data) == size
    return data, whole and (crc == 0 or zlib.crc32(data) == crc)


def _uncompressed(packed: bytes, name: bytes, size: int) -> bytes:
    """As far as it can be uncompressed."""
    if name == b"":
        return packed
    if size > CHUNK_BYTES_MAX:
        return b""
    out = bytearray()
    unpack = zstandard.ZstdDecompressor().decompressobj() if name == b"zstd" else lz4.frame.LZ4FrameDecompressor()
    try:
        for at in range(0, len(packed), 1 << 14):
            out += unpack.decompress(packed[at : at + (1 << 14)])
    except (zstandard.ZstdError, RuntimeError, EOFError):
        return bytes(out)
    return bytes(out)


def consistent(data: bytes, at: int) -> bool:
    """Two lengths of the chunk record at `at`, far apart, agree. Also true of one that reaches beyond the end."""
    length = int.from_bytes(data[at + 1 : at + HEAD], "little")
    name = int.from_bytes(data[at + HEAD + CHUNK_FIELDS : at + HEAD + CHUNK_FIELDS + 4], "little")
    inner_at = at + HEAD + CHUNK_FIELDS + 4 + name
    inner = int.from_bytes(data[inner_at : inner_at + 8], "little")
    return inner <= CHUNK_BYTES_MAX and length == CHUNK_FIELDS + 4 + name + 8 + inner


def next_chunk(data: bytes, at: int) -> int:
    """Where the next chunk record begins, at `at` or later; else the end."""
    while (found := CHUNK_START.search(data, at)) is not None:
        if consistent(data, found.start()):
            return found.start()
        at = found.start() + 1
    return len(data)
