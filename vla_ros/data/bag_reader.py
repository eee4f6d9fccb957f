"""Reads episodes: rosbag2 folders with MCAP files. Types come from the definitions that the bag itself carries; no ROS.

bag = Bag.open("episodes/red_cube")
for message in bag.messages(["/vla/safe_command"]):
    command = bag.decode(message)                  # an object with the fields of msg/SafeCommand
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
import zstandard
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, Schema
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import ContractInvalid, Invalid, VlaError
from vla_ros.data.episode import METADATA, Episode

NS = 1_000_000_000
INFORMATION = "rosbag2_bagfile_information"
COMPRESSED = "/compressed"  # image_transport's name for the topic beside a camera's
READ_ERRORS = (  # of mcap's reader on a damaged file
    *(McapError, OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError, MemoryError),
    *(struct.error, zstandard.ZstdError),
)
ENCODING = "ros2msg"  # of definitions
NO_SCHEMA = Schema(id=0, data=b"", encoding="", name="unknown")
RECOVER = "`vla bag recover DIR --out NEW` rebuilds what is there"


class BagError(VlaError):
    """A bag that cannot be read, or not for this purpose. The message says what to do."""


class Stored(NamedTuple):
    """One message as it was recorded. `log_ns`: ROS time of its receipt; `publish_ns`: of its sending, where known."""

    topic: str
    log_ns: int
    publish_ns: int
    sequence: int
    data: bytes  # CDR


@dataclass(frozen=True, slots=True)
class TopicInfo:
    name: str
    kind: str  # package/msg/Type
    count: int


class Bag:
    """One episode. Nothing is held open between calls; `decode` may be called from one thread at a time."""

    def __init__(self, folder: Path, information: dict[str, Any]) -> None:
        """Use `open`."""
        self.folder = folder
        self.information = information
        self._files = [folder / Path(name).name for name in information["relative_file_paths"]]
        missing = [path.name for path in self._files if not path.is_file()]
        if missing or not self._files:
            raise BagError(f"{folder}: {', '.join(missing) or 'every MCAP file'} is missing")
        self._store = get_typestore(Stores.EMPTY)
        self._schemas: dict[str, Schema] = {}  # of each topic
        self.channels: dict[str, Channel] = {}
        counts: dict[str, int] = {}
        spans: list[tuple[int, int]] = []
        for path in self._files:
            with _reading(path), path.open("rb") as stream:
                summary = SeekingReader(stream).get_summary()
                if summary is None or summary.statistics is None:
                    raise BagError(f"{path}: its end is missing; {RECOVER}")
                for channel in summary.channels.values():
                    self.channels[channel.topic] = channel
                    self._schemas[channel.topic] = summary.schemas.get(channel.schema_id, NO_SCHEMA)
                    count = summary.statistics.channel_message_counts.get(channel.id, 0)
                    counts[channel.topic] = counts.get(channel.topic, 0) + count
                if summary.statistics.message_count:
                    spans.append((summary.statistics.message_start_time, summary.statistics.message_end_time))
        self.topics = {name: TopicInfo(name, self._schemas[name].name, count) for name, count in sorted(counts.items())}
        self.start_ns = min((first for first, _ in spans), default=0)
        self.end_ns = max((last for _, last in spans), default=0)

    @classmethod
    def open(cls, path: str | Path) -> Bag:
        """A bag's folder. Raises `BagError`: no folder, no or unreadable metadata, no MCAP, a file without an end."""
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise BagError(f"{folder}: not a folder; a bag is a folder with {METADATA} and one MCAP file")
        metadata = folder / METADATA
        if not metadata.is_file():
            found = "there is an MCAP file, so the recording was cut off" if list(folder.glob("*.mcap")) else "no bag"
            raise BagError(f"{folder}: {METADATA} is missing: {found}. {RECOVER}")
        return cls(folder, read_information(metadata))

    @property
    def messages_total(self) -> int:
        return sum(topic.count for topic in self.topics.values())

    @property
    def duration_s(self) -> float:
        """From the first to the last message."""
        return (self.end_ns - self.start_ns) / NS

    @property
    def custom_data(self) -> dict[str, str]:
        return {str(key): str(value) for key, value in (self.information.get("custom_data") or {}).items()}

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files)

    def episode(self) -> Episode:
        """Raises `Invalid` for custom data that the recorder has not written."""
        return Episode.from_custom_data(self.custom_data)

    def schema(self, topic: str) -> Schema:
        return self._schemas[topic]

    def find(self, name: str) -> str | None:
        """The recorded topic of a relative name, in whatever namespace; a camera's is found in its compressed form."""
        name = name.lstrip("/")
        for wanted in (name, name + COMPRESSED):
            for topic in self.topics:
                if topic.lstrip("/") == wanted or topic.endswith("/" + wanted):
                    return topic
        return None

    def messages(
        self, topics: Collection[str] | None = None, start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Stored]:
        """In the order of `log_ns`, bounds included. Raises `BagError` where the file is damaged."""
        end = None if end_ns is None else end_ns + 1
        for path in self._files:
            with _reading(path), path.open("rb") as stream:
                reader = SeekingReader(stream, validate_crcs=True)
                for _, channel, message in reader.iter_messages(topics, starting_at=start_ns, ending_before=end):
                    yield Stored(channel.topic, message.log_time, message.publish_time, message.sequence, message.data)

    def decode(self, message: Stored) -> Any:
        """An object with the fields of the message's type. Raises `BagError`."""
        return self.decoder(message.topic)(message.data)

    def decoder(self, topic: str) -> Callable[[bytes], Any]:
        """From the bytes of `topic` to an object. Raises `BagError` for a type without a usable definition."""
        schema = self._schemas[topic]
        if schema.name not in self._store.fielddefs:
            try:
                if schema.encoding != ENCODING:
                    raise ValueError(f"allowed: {ENCODING}")
                types = get_types_from_msg(schema.data.decode(), schema.name)
                self._store.register({k: v for k, v in types.items() if k not in self._store.fielddefs})
            except (TypesysError, UnicodeDecodeError, ValueError, KeyError) as error:
                raise BagError(
                    f"{topic}: the bag's definition of {schema.name!r} ({schema.encoding}) is not readable: {error}"
                ) from error
        store, kind = self._store, schema.name

        def decode(data: bytes) -> Any:
            try:
                return store.deserialize_cdr(data, kind)
            except Exception as error:  # the reader raises whatever a wrong length makes Python raise
                raise BagError(f"{topic}: {len(data)} bytes are no {kind} ({type(error).__name__}: {error})") from error

        return decode


class _reading:
    """Turns what the MCAP reader raises on a damaged file into one clear error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, READ_ERRORS) and not isinstance(error, VlaError):
            what = str(error) or type(error).__name__
            raise BagError(f"{self._path}: damaged ({what}); {RECOVER}") from error


def read_information(metadata: Path) -> dict[str, Any]:
    """`rosbag2_bagfile_information` of a metadata.yaml. Raises `BagError`."""
    try:
        information = yaml.safe_load(metadata.read_text(encoding="utf-8"))[INFORMATION]
        storage, files = information["storage_identifier"], information["relative_file_paths"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BagError(f"{metadata}: not a rosbag2 {METADATA} ({type(error).__name__}: {error}); {RECOVER}") from error
    if storage != "mcap":
        raise BagError(f"{metadata}: storage is {storage!r}, allowed: mcap; `ros2 bag convert` changes it")
    if not (isinstance(files, list) and all(isinstance(name, str) for name in files)):
        raise BagError(f"{metadata}: relative_file_paths is {files!r}, allowed: a list of file names")
    return dict(information)


def require_contract(bag: Bag, contract: Contract) -> None:
    """Raises `BagError` that names every differing field when the bag was recorded with another contract."""
    recorded = bag.custom_data.get("contract_hash", "")
    if recorded == contract.hash:
        return
    if not recorded:
        raise BagError(f"{bag.folder}: its metadata name no contract; allowed: {contract.hash} ({contract.name})")
    differences = contract_differences(bag, contract)
    raise BagError(
        f"{bag.folder}: recorded with another contract ({recorded[:12]}, here {contract.name} {contract.hash[:12]}): "
        + ("; ".join(differences) or "the bag does not carry its contract, so the fields cannot be named")
    )


def contract_differences(bag: Bag, contract: Contract) -> list[str]:
    """What differs between the contract that the bag carries and ours, one clause a field; empty without one."""
    text = bag.custom_data.get("contract_text", "")
    if not text:
        return []
    try:
        theirs = _flat(yaml.safe_load(text))
    except yaml.YAMLError:
        return []
    ours = _flat(yaml.safe_load(Path(contract.source).read_text(encoding="utf-8")))
    found = [
        f"{key} is {theirs.get(key, 'absent')} in the bag, {ours.get(key, 'absent')} here"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    return found or ["the URDF"]  # the only other thing that the hash covers


def own_contract(bag: Bag) -> Contract | None:
    """The contract that the bag carries, if it does and it is one here."""
    text = bag.custom_data.get("contract_text", "")
    try:
        return contracts.parse(text, source=f"{bag.folder}: contract_text") if text else None
    except ContractInvalid:
        return None


def _flat(content: Any, at: str = "") -> dict[str, str]:
    """{"cameras[0].rate_hz": "15.0"} from nested YAML content."""
    if isinstance(content, dict):
        parts = [(f"{at}.{key}" if at else str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(value, (dict, list)) for value in content):
        parts = [(f"{at}[{index}]", value) for index, value in enumerate(content)]
    else:
        return {at: json.dumps(content, default=str)}
    flat: dict[str, str] = {}
    for key, value in parts:
        flat.update(_flat(value, key))
    return flat


def stamp_ns(stamp: Any) -> int:
    """Of a builtin_interfaces/Time, as `decode` returns it."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


__all__ = ["Bag", "BagError", "Invalid", "Stored", "TopicInfo", "contract_differences", "own_contract", "stamp_ns"]
