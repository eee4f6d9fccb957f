"""A bag made of messages of another one: same bytes, times and definitions. What recovery and trimming write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import yaml
from mcap.records import Channel, Schema
from mcap.writer import CompressionType, Writer

from vla_ros.data import episode as episodes
from vla_ros.data.bag_reader import INFORMATION, Stored
from vla_ros.data.bag_writer import CHUNK_BYTES, QOS, Span, information, require_absent
from vla_ros.data.disk import sync_folder, write_whole


class CopyWriter:
    """Makes `target`, which must not exist, under a temporary name; `keep` gives it its own. One thread.

    with CopyWriter(target) as copy:
        copy.write(message, channel, schema)
        copy.keep(custom_data)
    """

    def __init__(self, target: Path) -> None:
        """Raises `Invalid` for a bad or taken name, `OSError`."""
        self.target = target.expanduser().absolute()
        episodes.require_name(self.target.name)
        self.folder = self.target.with_name(self.target.name + episodes.PART)
        require_absent(self.target, self.folder)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir()
        self._file = episodes.bag_file(self.folder).open("wb")
        self._mcap = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE)
        self._mcap.start(profile="ros2", library="vla_ros")
        self._schemas: dict[tuple[str, bytes], int] = {}
        self._channels: dict[str, int] = {}
        self._rows: list[dict[str, object]] = []  # topic_metadata, in the order of the counts
        self.span = Span([])

    def add_topic(self, channel: Channel, schema: Schema) -> int:
        """Also topics without a message are part of a bag. Returns the index for the counts."""
        if channel.topic in self._channels:
            return self._channels[channel.topic]
        key = (schema.name, schema.data)
        if key not in self._schemas:
            self._schemas[key] = self._mcap.register_schema(schema.name, schema.encoding, schema.data)
        profiles = _profiles(channel)
        self._mcap.register_channel(channel.topic, channel.message_encoding, self._schemas[key], dict(channel.metadata))
        self._channels[channel.topic] = index = len(self._rows)
        self.span.counts.append(0)
        self._rows.append(
            {
                "name": channel.topic,
                "type": schema.name,
                "serialization_format": channel.message_encoding,
                "offered_qos_profiles": profiles,
                "type_description_hash": channel.metadata.get("topic_type_hash", ""),
            }
        )
        return index

    def write(self, message: Stored, channel: Channel, schema: Schema) -> None:
        index = self.add_topic(channel, schema)
        # The writer numbers channels from 1, in the order in which they are registered.
        self._mcap.add_message(index + 1, message.log_ns, message.data, message.publish_ns, message.sequence)
        span = self.span
        if span.messages == 0:
            span.first_ns = span.last_ns = message.log_ns
        span.first_ns, span.last_ns = min(span.first_ns, message.log_ns), max(span.last_ns, message.log_ns)
        span.counts[index] += 1

    def keep(self, custom_data: Mapping[str, str], ros_distro: str = "") -> Path:
        """Closes it, writes metadata.yaml, gives it its name."""
        facts = information(
            episodes.bag_file(self.folder).name,
            (),
            Span([], self.span.first_ns, self.span.last_ns),
            custom_data,
            ros_distro,
        )
        facts["message_count"] = facts["files"][0]["message_count"] = self.span.messages
        facts["topics_with_message_count"] = [
            {"topic_metadata": row, "message_count": count}
            for row, count in zip(self._rows, self.span.counts, strict=True)
        ]
        self._mcap.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        text = yaml.safe_dump({INFORMATION: facts}, sort_keys=False, allow_unicode=True, width=1000)
        write_whole(self.folder / episodes.METADATA, text)
        require_absent(self.target)
        self.folder.rename(self.target)
        sync_folder(self.target.parent)
        return self.target

    def __enter__(self) -> CopyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was not kept leaves nothing behind."""
        self._file.close()
        if self.folder.exists():
            shutil.rmtree(self.folder)


def _profiles(channel: Channel) -> list[dict[str, object]]:
    """As the source says; the channel and metadata.yaml must agree, or rosbag2's readers do not match them."""
    try:
        profiles = yaml.safe_load(channel.metadata.get("offered_qos_profiles", "")) or []
    except yaml.YAMLError:
        profiles = None
    if not (isinstance(profiles, list) and all(isinstance(p, dict) and QOS.keys() <= p.keys() for p in profiles)):
        channel.metadata.pop("offered_qos_profiles", None)  # damaged: better none than one that no reader takes
        return []
    return [dict(profile) for profile in profiles]
