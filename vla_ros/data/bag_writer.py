"""Writes one episode as a rosbag2 folder: `<name>_0.mcap` (profile ros2, CDR, definitions embedded) and metadata.yaml.

The folder is called `<name>.part` until `keep`. Whatever stops the process, everything up to the last `flush` can be
read again; whatever fills the disk, the bag is closed as a valid one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mcap.writer import CompressionType, Writer

from vla_ros.core.errors import Invalid
from vla_ros.data import episode as episodes
from vla_ros.data.disk import GrowingFile, sync_folder, write_whole
from vla_ros.data.episode import Episode
from vla_ros.data.ros_schema import Schema, schema

CHUNK_BYTES = 1 << 20  # our choice (1 to 4 MiB is usual): what a damaged byte can cost
COMMIT_BYTES = 2 << 20  # our choice: waits in memory at most, together with one message
VERSION = 9  # of metadata.yaml, as ROS 2 Jazzy and Kilted write it
QOS = {
    "history": "keep_last", "depth": 1, "reliability": "reliable", "durability": "volatile",
    "deadline": {"sec": 0, "nsec": 0}, "lifespan": {"sec": 0, "nsec": 0}, "liveliness": "automatic",
    "liveliness_lease_duration": {"sec": 0, "nsec": 0}, "avoid_ros_namespace_conventions": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of a bag: absolute name, type as package/msg/Type, how it is offered where that differs from `QOS`."""

    name: str
    kind: str
    qos: Mapping[str, Any] = field(default_factory=dict)

    @property
    def profile(self) -> dict[str, Any]:
        return {**QOS, **self.qos}


@dataclass
class Span:
    """Of the messages written to one bag; counts by topic, in the order of the topics."""

    counts: list[int]
    first_ns: int = 0
    last_ns: int = 0

    @property
    def messages(self) -> int:
        return sum(self.counts)


class BagWriter:
    """One thread. `write`, `flush` now and then, `close`, then `keep` or `discard`.

    Compression is off by measurement: JPEG images, most of a bag, do not shrink, and the rest is small.
    """

    def __init__(
        self, parent: Path, name: str, topics: Sequence[Topic], episode: Episode, compression: str = "none"
    ) -> None:
        """Makes `parent/<name>.part`. Raises Invalid for a bad or taken name, OSError when the disk refuses."""
        episodes.require_name(name)
        self.target, self.folder = parent / name, parent / f"{name}{episodes.PART}"
        self.name, self.topics, self.span = name, tuple(topics), Span([0] * len(topics))
        self.closed = False
        self._ros_distro = os.environ.get("ROS_DISTRO", "")
        require_absent(self.target, self.folder)
        schemas = [schema(topic.kind) for topic in topics]  # before anything is made
        parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir()
        try:
            self._file = GrowingFile(self._path)
            self._open(schemas, episode, compression)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def _path(self) -> Path:
        return episodes.bag_file(self.folder)

    def _open(self, schemas: Sequence[Schema], episode: Episode, compression: str) -> None:
        self._mcap = Writer(
            self._file,
            chunk_size=CHUNK_BYTES,
            compression={"none": CompressionType.NONE, "zstd": CompressionType.ZSTD}[compression],
        )
        self._mcap.start(profile="ros2", library=f"vla_ros {episode.recorder}")
        self._mcap.add_metadata(episodes.IN_FILE, episode.custom_data())
        known = {s.name: self._mcap.register_schema(s.name, "ros2msg", s.text.encode()) for s in dict.fromkeys(schemas)}
        self._channels = [
            self._mcap.register_channel(
                topic.name,
                "cdr",
                known[topic.kind],
                {"offered_qos_profiles": yaml.safe_dump([topic.profile]), "topic_type_hash": s.type_hash},
            )
            for topic, s in zip(self.topics, schemas, strict=True)
        ]
        self.flush()
        sync_folder(self.folder.parent)

    # ------------------------------------------------------------------------------------------ messages

    @property
    def full(self) -> bool:
        """The disk had no more room: close now."""
        return self._file.full

    @property
    def size_bytes(self) -> int:
        return self._file.tell()

    def write(self, topic: int, data: bytes, log_ns: int, publish_ns: int | None = None) -> None:
        """A serialised message of `topics[topic]`, received at `log_ns` (ROS time). It reaches the disk with the next
        flush, or when enough waits; then OSError as in `flush`."""
        self._mcap.add_message(self._channels[topic], log_ns, data, log_ns if publish_ns is None else publish_ns)
        span = self.span
        if span.messages == 0:
            span.first_ns = span.last_ns = log_ns
        span.first_ns, span.last_ns = min(span.first_ns, log_ns), max(span.last_ns, log_ns)
        span.counts[topic] += 1
        if self._file.waiting_bytes >= COMMIT_BYTES:
            self._file.commit(sync=False)

    def flush(self) -> None:
        """Everything written so far survives the end of the process and of the power."""
        self._mcap.flush()
        self._file.commit()

    # ------------------------------------------------------------------------------------------ the end

    def close(self, episode: Episode) -> None:
        """A complete bag, still under its temporary name. Raises OSError when the disk did not take its end: what was
        flushed is then left for `vla bag recover`."""
        if self.closed:
            return
        self.closed = True
        try:
            self._mcap.add_metadata("rosbag2", {"serialized_metadata": _dump(self._information(episode))})
            self._mcap.finish()
            self._file.commit()
        finally:
            self._file.close()
        self.describe(episode)

    def abandon(self) -> None:
        """After an error that is not about space: let go, the file stays as it is."""
        self.closed = True
        self._file.close()

    def describe(self, episode: Episode) -> None:
        """metadata.yaml, anew or changed."""
        text = _dump({"rosbag2_bagfile_information": self._information(episode)})
        write_whole(self.folder / episodes.METADATA, text)
        sync_folder(self.folder)

    def keep(self, episode: Episode) -> Path:
        """Its final description and name. Raises Invalid when the name has been taken meanwhile."""
        require_absent(self.target)
        self.describe(episode)
        self.folder.rename(self.target)
        self.folder = self.target
        sync_folder(self.target.parent)
        return self.target

    def discard(self) -> None:
        self.abandon()
        shutil.rmtree(self.folder)

    def _information(self, episode: Episode) -> dict[str, Any]:
        return information(self._path.name, self.topics, self.span, episode.custom_data(), self._ros_distro)


def require_absent(*folders: Path) -> None:
    for folder in folders:
        if os.path.lexists(folder):
            raise Invalid(
                "episode", str(folder), "a folder that does not exist yet", "Choose another name, or remove it"
            )


def information(
    file: str, topics: Sequence[Topic], span: Span, custom_data: Mapping[str, str], ros_distro: str
) -> dict[str, Any]:
    """`rosbag2_bagfile_information` of metadata.yaml, for a bag of one file."""
    start = {"nanoseconds_since_epoch": span.first_ns}
    duration = {"nanoseconds": span.last_ns - span.first_ns}
    return {
        "version": VERSION,
        "storage_identifier": "mcap",
        "relative_file_paths": [file],
        "duration": duration,
        "starting_time": start,
        "message_count": span.messages,
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": [topic.profile],
                    "type_description_hash": schema(topic.kind).type_hash,
                },
                "message_count": count,
            }
            for topic, count in zip(topics, span.counts, strict=True)
        ],
        "compression_format": "",
        "compression_mode": "",
        "files": [{"path": file, "starting_time": start, "duration": duration, "message_count": span.messages}],
        "custom_data": dict(custom_data),
        "ros_distro": ros_distro,
    }


class _Plain(yaml.SafeDumper):
    """rosbag2's reader is yaml-cpp; anchors would be allowed, but nobody expects them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000)
