"""A file that only grows, on a disk that may fill up, in a process that may be killed.

What is written waits in memory until `commit`. A commit reaches the disk whole or not at all: after an error the file
is cut back to the last commit. Beside the file lies a reserve of `RESERVE_BYTES` which is given back when the disk is
full, so that what waits, and the end of the file, still find room.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from vla_ros.core.errors import Invalid

RESERVE_BYTES = 8 << 20  # our choice: more than ever waits in memory (2 MiB and one image), and the index at the end
RESERVE = ".reserve"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_free(folder: Path, free_min_bytes: int) -> None:
    """Raises Invalid while the disk that `folder` lies on has less than that left for ordinary users."""
    free = shutil.disk_usage(folder).free
    if not free >= free_min_bytes:
        raise Invalid(
            f"free space of {folder}", f"{free / 1e6:.0f} MB", f">= {free_min_bytes / 1e6:.0f} MB",
            "Delete what is not needed, record to another disk, or lower the recorder's parameter free_min_mb",
        )  # fmt: skip


class GrowingFile:
    """Stream for mcap's Writer (`write`, `tell`, `flush`); one thread. `full` is true once the disk had no room."""

    def __init__(self, path: Path) -> None:
        """Creates the file and its reserve; raises OSError, and leaves neither, when the disk has no room for them."""
        self._reserve = path.parent / RESERVE
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._committed = 0
        self.full = False
        try:
            reserve = os.open(self._reserve, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(reserve, 0, RESERVE_BYTES)
            finally:
                os.close(reserve)
        except OSError:
            self.close()
            path.unlink()
            raise

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def write(self, data: bytes) -> int:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._committed + self._waiting_bytes

    def flush(self) -> None:
        """Nothing: mcap flushes after each chunk, `commit` says when it is to be on disk."""

    def commit(self, *, sync: bool = True) -> None:
        """Everything that waits is in the file; with `sync` it also survives a power cut. Raises OSError when even the
        reserve was not enough: the file then ends at the last commit."""
        data = b"".join(self._waiting)
        try:
            self._append(data)
        except OSError as error:
            if error.errno not in NO_ROOM or self.full:
                raise
            self.full = True
            self._free_reserve()
            self._append(data)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._committed += len(data)
        if sync:
            os.fdatasync(self._file)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self._committed)
            os.lseek(self._file, self._committed, os.SEEK_SET)
            raise

    def _free_reserve(self) -> None:
        self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of file and reserve; what was not committed is lost. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._free_reserve()


def sync_folder(folder: Path) -> None:
    """Names in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Under a temporary name, then renamed: `path` holds the old text or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
