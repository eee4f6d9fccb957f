"""What an episode on disk is, and what is left of it when the disk fills up or the process is killed."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import yaml
from rosbags.highlevel import AnyReader

from vla_ros.core.errors import Invalid
from vla_ros.data import disk
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode, bag_file, require_name
from vla_ros.data.images import Coding, decode
from vla_ros.data.ring import OVERHEAD_BYTES, Received, Ring
from vla_ros.data.ros_schema import schema

pytestmark = pytest.mark.unit
np = pytest.importorskip("numpy")
TOPICS = [
    Topic("/vla/interrupt", "std_msgs/msg/Empty"),
    Topic("/vla/joint_states", "sensor_msgs/msg/JointState", {"depth": 10, "reliability": "best_effort"}),
    Topic("/vla/observation", "vla_ros/msg/Observation"),
]
EMPTY = b"\x00\x01\x00\x00\x00"  # std_msgs/Empty in CDR
BEGIN_NS = 1_700_000_000_000_000_000
FULL = Episode(
    text='place "it": ü, yes', instruction_id=2**63, contract="panda", contract_hash="ab" * 32, policy_hash="cd" * 32,
    contract_text="name: panda\nrates: {control_hz: 100.0}\n", outcome="timeout", outcome_reason="not done within 30 s",
    success=False, operator="somebody", images="jpeg 90", closed="the disk is full", recorder="0.1.0", recorded_s=12.25,
    drops={"/vla/joint_states": 3},
)  # fmt: skip


def metadata(folder):
    return yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


def read(folder):
    """(topic, time, bytes) by a reader that is not ours."""
    with AnyReader([folder]) as reader:
        return [(connection.topic, at_ns, bytes(data)) for connection, at_ns, data in reader.messages()]


# ---------------------------------------------------------------------------------------------- what an episode says


def test_episode_comes_back_from_the_metadata_as_it_was():
    for episode in (FULL, Episode()):
        data = episode.custom_data()
        assert all(isinstance(value, str) for value in data.values())
        assert Episode.from_custom_data(yaml.safe_load(yaml.safe_dump(data))) == episode
    assert Episode.from_custom_data({"somebody": "else"}) == Episode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "a\nb"}, {"text": "x" * 257}, {"outcome": "fine"}, {"recorded_s": float("nan")},
        {"instruction_id": -1}, {"contract_hash": "xyz"}, {"drops": {"/a": 0}}, {"success": "maybe"},
    ],
)  # fmt: skip
def test_episode_with_a_value_that_is_not_allowed_is_refused_by_name(wrong):
    with pytest.raises(Invalid, match=next(iter(wrong))):
        Episode(**wrong).custom_data()


@pytest.mark.parametrize(
    ("key", "value"),
    [("instruction_id", "one"), ("drops", "[1]"), ("drops", "{"), ("success", "2"), ("recorded_s", "x")],
)
def test_metadata_of_somebody_else_under_our_keys_is_refused_by_name(key, value):
    with pytest.raises(Invalid, match=key):
        Episode.from_custom_data({key: value})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x.part", "x" * 121, "ü", "-a"])
def test_names_that_are_no_plain_folder_names_are_refused(name):
    with pytest.raises(Invalid, match="episode name"):
        require_name(name)


def test_definitions_are_complete_and_carry_the_hash_of_the_installed_type():
    found = schema("vla_ros/msg/Observation")
    assert "MSG: vla_ros/CameraImage" in found.text and "MSG: builtin_interfaces/Time" in found.text
    assert found.type_hash.startswith("RIHS01_")
    with pytest.raises(Invalid, match="nothing/msg/Here"):
        schema("nothing/msg/Here")


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_bag_is_read_by_an_independent_reader(tmp_path, compression):
    bag = BagWriter(tmp_path, "first", TOPICS, Episode(text="before"), compression)
    sent = [(TOPICS[i % 2].name, BEGIN_NS + i * 1000, EMPTY + bytes(i % 7)) for i in range(500)]
    for i, (_, at_ns, data) in enumerate(sent):
        bag.write(i % 2, data, at_ns)
    assert not (tmp_path / "first").exists()
    bag.close(FULL)
    assert bag.keep(FULL) == tmp_path / "first"
    assert read(tmp_path / "first") == sent
    facts = metadata(tmp_path / "first")
    assert facts["version"] == 9 and facts["message_count"] == 500
    assert facts["duration"]["nanoseconds"] == 499_000
    assert Episode.from_custom_data(facts["custom_data"]) == FULL
    by_name = {row["topic_metadata"]["name"]: row for row in facts["topics_with_message_count"]}
    assert by_name["/vla/joint_states"]["message_count"] == 250
    assert by_name["/vla/joint_states"]["topic_metadata"]["offered_qos_profiles"][0]["reliability"] == "best_effort"
    assert by_name["/vla/observation"]["topic_metadata"]["type_description_hash"].startswith("RIHS01_")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["first_0.mcap", "metadata.yaml"]


def test_episode_without_a_message_is_a_valid_bag(tmp_path):
    bag = BagWriter(tmp_path, "silent", TOPICS, Episode())
    bag.close(Episode())
    bag.keep(Episode())
    assert read(tmp_path / "silent") == []
    assert metadata(tmp_path / "silent")["message_count"] == 0


def test_folder_that_exists_is_refused_and_left_alone(tmp_path):
    for taken in ("a", "b.part"):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "mine").write_text("precious")
        with pytest.raises(Invalid, match="does not exist"):
            BagWriter(tmp_path, taken.removesuffix(".part"), TOPICS, Episode())
        assert [p.name for p in (tmp_path / taken).iterdir()] == ["mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.part"]


def test_name_that_was_taken_meanwhile_is_not_overwritten(tmp_path):
    bag = BagWriter(tmp_path, "a", TOPICS, Episode())
    bag.close(Episode())
    (tmp_path / "a").mkdir()
    with pytest.raises(Invalid, match="does not exist"):
        bag.keep(Episode())
    assert read(tmp_path / "a.part") == []


def test_discarded_episode_leaves_nothing(tmp_path):
    bag = BagWriter(tmp_path, "a", TOPICS, Episode())
    bag.write(0, EMPTY, BEGIN_NS)
    bag.discard()
    assert list(tmp_path.iterdir()) == []


def test_unknown_type_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(Invalid, match="no_such/msg/Type"):
        BagWriter(tmp_path / "new", "a", [Topic("/a", "no_such/msg/Type")], Episode())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- a full disk, a kill


class SmallDisk:
    """os.write of a file system with so many bytes left; what a reserve gives back can be used again."""

    def __init__(self, room):
        self.room, self.real = room, os.write

    def write(self, handle, data):
        taken = min(len(data), self.room)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        return self.real(handle, data[:taken])


@pytest.fixture
def small_disk(monkeypatch):
    def shrink(room):
        small = SmallDisk(room)
        monkeypatch.setattr(disk.os, "write", small.write)
        free = disk.GrowingFile._free_reserve

        def free_reserve(file):
            if file._reserve.exists():
                small.room += disk.RESERVE_BYTES
            free(file)

        monkeypatch.setattr(disk.GrowingFile, "_free_reserve", free_reserve)

    return shrink


def test_full_disk_closes_the_bag_with_everything_that_was_written(tmp_path, small_disk):
    bag = BagWriter(tmp_path, "a", TOPICS, Episode())
    small_disk(700_000)
    written = []
    while not bag.full:
        written.append(EMPTY + os.urandom(50_000))
        bag.write(0, written[-1], BEGIN_NS + len(written))
        bag.flush()
        assert len(written) < 100
    bag.close(Episode(closed="the disk is full"))
    bag.keep(Episode(closed="the disk is full"))
    assert [data for _, _, data in read(tmp_path / "a")] == written
    assert metadata(tmp_path / "a")["custom_data"]["closed"] == "the disk is full"


def test_commit_that_fails_leaves_the_file_as_it_was(tmp_path, small_disk):
    file = disk.GrowingFile(tmp_path / "a")
    file.write(b"first")
    file.commit()
    small_disk(3)
    file.full = True  # the reserve is gone already
    file.write(b"second")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.commit()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_no_room_for_the_reserve_means_no_bag_at_all(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        BagWriter(tmp_path, "a", TOPICS, Episode())
    assert list(tmp_path.iterdir()) == []


def test_disk_guard_names_what_is_free_and_what_is_asked(tmp_path):
    disk.require_free(tmp_path, 0)
    with pytest.raises(Invalid, match=r"free space of .* MB"):
        disk.require_free(tmp_path, 1 << 62)


KILLED = """
import os, signal, sys
from pathlib import Path
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode
bag = BagWriter(Path(sys.argv[1]), "a", [Topic("/vla/interrupt", "std_msgs/msg/Empty")], Episode(text="the text"))
for i in range(300):
    bag.write(0, b"\\x00\\x01\\x00\\x00\\x00", 10**18 + i)
    if i == 199:
        bag.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_leaves_everything_up_to_the_last_flush_and_what_the_episode_is_about(tmp_path):
    from mcap.exceptions import EndOfFile
    from mcap.records import Message, Metadata
    from mcap.stream_reader import StreamReader

    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    records = []
    with bag_file(tmp_path / "a.part").open("rb") as file, pytest.raises(EndOfFile):
        for record in StreamReader(file).records:
            records.append(record)
    assert sum(isinstance(record, Message) for record in records) == 200
    about = next(record for record in records if isinstance(record, Metadata))
    assert Episode.from_custom_data(about.metadata).text == "the text"


LIMITED = """
import os, resource, sys
from pathlib import Path
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode
from vla_ros.data.disk import RESERVE_BYTES
bag = BagWriter(Path(sys.argv[1]), "a", [Topic("/vla/interrupt", "std_msgs/msg/Empty")], Episode())
resource.setrlimit(resource.RLIMIT_FSIZE, (RESERVE_BYTES, RESERVE_BYTES))
try:
    for i in range(1000):
        bag.write(0, bytes(100_000), 10**18 + i)
        bag.flush()
except OSError as error:
    print(error.errno, i)
    bag.abandon()
"""


def test_file_that_may_not_grow_ends_at_a_whole_chunk(tmp_path):
    """The limit of a process on its files: no reserve helps, but nothing half written stays."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    code, written = map(int, done.stdout.split())
    assert code == errno.EFBIG and resource.RLIMIT_FSIZE is not None
    from mcap.exceptions import EndOfFile
    from mcap.records import Message
    from mcap.stream_reader import StreamReader

    count = 0
    with bag_file(tmp_path / "a.part").open("rb") as file, pytest.raises(EndOfFile):
        for record in StreamReader(file, validate_crcs=True).records:
            count += isinstance(record, Message)
    assert count == written > 70


# ---------------------------------------------------------------------------------------------- ring, images


def test_ring_keeps_the_last_seconds():
    ring = Ring(2.0, 10**9)
    for i in range(100):
        ring.add(Received(0, b"x", i * 100_000_000))
    assert [m.log_ns for m in ring.last(0.0)] == [i * 100_000_000 for i in range(79, 100)]
    assert len(ring.last(1.0)) == 11


def test_ring_never_holds_more_than_its_memory():
    ring = Ring(100.0, 10 * (1000 + OVERHEAD_BYTES))
    for i in range(1000):
        ring.add(Received(0, bytes(1000), i))
        assert ring.bytes <= 10 * (1000 + OVERHEAD_BYTES)
    assert [m.log_ns for m in ring.last(0.0)] == list(range(990, 1000))


def scene():
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    return np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)


def test_png_is_lossless_and_jpeg_is_near():
    rgb = scene()
    assert np.array_equal(decode(Coding("png").encode(rgb)), rgb)
    assert np.abs(decode(Coding("jpeg", 90).encode(rgb)).astype(int) - rgb).mean() < 3.0
    assert len(Coding("jpeg", 30).encode(rgb)) < len(Coding("jpeg", 95).encode(rgb))


@pytest.mark.parametrize("text", ["jpeg", "jpeg 1", "jpeg 100", "png"])
def test_coding_is_read_from_the_words_it_writes(text):
    assert str(Coding.parse(text)).startswith(text)


@pytest.mark.parametrize("text", ["", "jpeg 0", "jpeg 101", "jpeg -1", "png 3", "webp", "jpeg 9000"])
def test_other_words_for_a_coding_are_refused(text):
    with pytest.raises(Invalid, match="allowed"):
        Coding.parse(text)


def test_cut_image_is_refused():
    with pytest.raises(Invalid, match="whole JPEG or PNG"):
        decode(Coding().encode(scene())[:-200])
