"""The recorder without ROS: commands, bounded queues, counted drops, and what happens when the disk says no."""

import errno
import itertools
import os
import threading
import time

import pytest
import yaml
from rosbags.highlevel import AnyReader

from vla_ros.core.errors import Invalid, Refused
from vla_ros.data import disk
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode, State
from vla_ros.data.recording import ENCODE_MAX, Recording, Stream
from vla_ros.data.session import Settings

pytestmark = pytest.mark.unit
EMPTY = b"\x00\x01\x00\x00\x00"
FAST, CAMERA, STATE = range(3)
NS = 1_000_000_000
BEGIN_NS = 1_700_000_000 * NS
WAIT_S = 30.0


class Bench:
    """A recording with a clock of its own: each message comes a millisecond after the one before."""

    def __init__(self, folder, change=bytes.upper, **settings):
        self.now_ns, self.failures, self.folder = BEGIN_NS, [], folder
        streams = [
            Stream(Topic("/vla/fast", "std_msgs/msg/Empty")),
            Stream(Topic("/vla/camera", "sensor_msgs/msg/CompressedImage"), change),
            Stream(Topic("/vla/state", "std_msgs/msg/Empty"), newest=True),
        ]
        chosen = Settings(folder, **{"free_min_bytes": 0, **settings})
        self.recording = Recording(streams, chosen, lambda: self.now_ns, self.failures.append)
        self.recording.begin()

    def say(self, topic, data=EMPTY):
        self.now_ns += 1_000_000
        self.recording.offer(topic, data, self.now_ns)

    def start(self, name="a", **known):
        return self.recording.start(name, lambda: Episode(**known)).result(WAIT_S)

    def keep(self, **changes):
        return self.recording.keep(**changes).result(WAIT_S)

    def written(self, name="a"):
        with AnyReader([self.folder / name]) as reader:
            return [(c.topic.rpartition("/")[2], at_ns, bytes(data)) for c, at_ns, data in reader.messages()]

    def episode(self, name="a"):
        text = (self.folder / name / "metadata.yaml").read_text()
        return Episode.from_custom_data(yaml.safe_load(text)["rosbag2_bagfile_information"]["custom_data"])


@pytest.fixture
def make(tmp_path):
    benches = []

    def bench(**given):
        benches.append(Bench(tmp_path, **given))
        return benches[-1]

    yield bench
    for made in benches:
        made.recording.end()
        assert made.failures == []


def until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "not within the deadline"
        time.sleep(0.005)


def test_episode_holds_exactly_what_was_said_between_start_and_keep(make):
    bench = make()
    bench.say(FAST, EMPTY + b"before")
    assert bench.start(text="the text").state is State.RECORDING
    for i in range(100):
        bench.say(FAST, EMPTY + b"%d" % i)
        bench.say(CAMERA, b"image %d" % i) if i % 20 == 0 else None
    status = bench.keep(outcome="done", success=True)
    bench.say(FAST, EMPTY + b"after")
    assert (status.state, status.folder, status.messages, status.drops) == (State.IDLE, bench.folder / "a", 105, 0)
    written = bench.written()
    assert [data for topic, _, data in written if topic == "fast"] == [EMPTY + b"%d" % i for i in range(100)]
    assert [data for topic, _, data in written if topic == "camera"] == [b"IMAGE %d" % i for i in range(0, 100, 20)]
    assert [at_ns for _, at_ns, _ in written] == sorted(at_ns for _, at_ns, _ in written)
    episode = bench.episode()
    assert (episode.text, episode.outcome, episode.success, dict(episode.drops)) == ("the text", "done", True, {})


def test_episode_begins_with_the_newest_state_of_before(make):
    bench = make()
    bench.say(STATE, EMPTY + b"old")
    bench.say(STATE, EMPTY + b"newest")
    bench.start()
    bench.keep()
    assert bench.written() == [("state", bench.now_ns, EMPTY + b"newest")]


def test_stopped_episode_waits_for_its_verdict(make):
    bench = make()
    bench.start()
    assert bench.recording.stop().result(WAIT_S).state is State.WAITING
    bench.say(FAST)
    with pytest.raises(Refused, match="a waits: keep or discard it first"):
        bench.start("b")
    assert bench.keep().folder.name == "a"
    assert bench.written() == []
    bench.start("b")
    with pytest.raises(Refused, match="b is being recorded"):
        bench.start("c")
    assert bench.recording.discard().result(WAIT_S).folder is None
    assert sorted(path.name for path in bench.folder.iterdir()) == ["a"]


@pytest.mark.parametrize("command", ["stop", "keep", "discard"])
def test_without_an_episode_there_is_nothing_to_stop_or_keep(make, command):
    with pytest.raises(Refused, match="nothing is being recorded"):
        getattr(make().recording, command)().result(WAIT_S)


def test_existing_episode_is_refused_and_the_recorder_stays_ready(make):
    bench = make()
    (bench.folder / "a").mkdir()
    with pytest.raises(Invalid, match="does not exist"):
        bench.start()
    with pytest.raises(Invalid, match="episode name"):
        bench.start("../a")
    bench.start("b")
    bench.keep()
    assert list((bench.folder / "a").iterdir()) == []


def test_episode_without_a_name_is_named_by_time_and_text_and_never_twice(make):
    bench = make()
    names = []
    for _ in range(2):
        bench.start("", text="Pick up the RED ball!")
        names.append(bench.keep().folder.name)
    assert names == ["20231114T221320_pick_up_the_red_ball", "20231114T221320_pick_up_the_red_ball_2"]


def test_images_that_cannot_be_encoded_in_time_are_dropped_and_counted(make):
    go, busy = threading.Event(), threading.Event()

    def slow(data):
        busy.set()
        assert go.wait(WAIT_S)
        return data

    bench = make(change=slow)
    bench.start()
    began_s = time.monotonic()
    for i in range(ENCODE_MAX + 5):
        bench.say(CAMERA, b"%d" % i)
    assert time.monotonic() - began_s < WAIT_S / 2  # nobody waited for the encoder
    assert busy.wait(WAIT_S)
    go.set()
    assert bench.keep().drops == 5
    assert dict(bench.episode().drops) == {"/vla/camera": 5}
    assert [data for _, _, data in bench.written()] == [b"%d" % i for i in range(ENCODE_MAX)]


def test_image_that_is_none_is_dropped_and_counted(make):
    def refuse(data):
        raise Invalid("encoding", data, "rgb8")

    bench = make(change=refuse)
    bench.start()
    bench.say(CAMERA)
    bench.recording.lost(FAST, 7)
    bench.keep()
    assert dict(bench.episode().drops) == {"/vla/camera": 1, "/vla/fast": 7}
    bench.start("b")
    bench.keep()
    assert dict(bench.episode("b").drops) == {}  # those of another episode do not count


def test_disk_that_stalls_costs_messages_but_nobody_waits_and_memory_is_bounded(make, monkeypatch):
    go, real = threading.Event(), os.fdatasync

    def stalled(handle):
        assert go.wait(WAIT_S)
        real(handle)

    bench = make(queue_max_bytes=1_000_000)
    bench.start()
    monkeypatch.setattr(disk.os, "fdatasync", stalled)
    until(lambda: bench.say(FAST, bytes(50_000)) or bench.recording.drops())
    assert bench.recording.status().state is State.RECORDING  # asked while the disk hangs
    go.set()
    status = bench.keep()
    assert status.drops >= 1 and dict(bench.episode().drops) == {"/vla/fast": status.drops}
    assert len(bench.written()) == status.messages


def test_what_has_piled_up_is_flushed_on_the_way(make, monkeypatch):
    """A kill then costs no more than usual."""
    monkeypatch.setattr("vla_ros.data.session.FLUSH_S", 0.0)
    bench = make()
    bench.start()
    write, flush, gate, flushed = BagWriter.write, BagWriter.flush, threading.Event(), []

    def late(*given):
        assert gate.wait(WAIT_S)
        write(*given)

    monkeypatch.setattr(BagWriter, "write", late)
    monkeypatch.setattr(BagWriter, "flush", lambda bag: (flushed.append(bag.span.messages), flush(bag)))
    for _ in range(20):
        bench.say(FAST)
    gate.set()
    assert bench.keep().messages == 20
    assert set(range(1, 20)) <= set(flushed)


def test_full_disk_ends_the_episode_as_a_whole_bag_and_tells(make, monkeypatch):
    bench = make()
    bench.start()
    real, room = os.write, itertools.count()

    def full_once(handle, data):
        if next(room) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    bench.say(FAST, EMPTY + b"said")
    monkeypatch.setattr(disk.os, "write", full_once)
    until(lambda: bench.recording.status().state is State.WAITING)
    bench.say(FAST, EMPTY + b"too late")
    assert "the disk is full" in bench.recording.status().note
    assert "the disk is full" in bench.keep().note
    assert [data for _, _, data in bench.written()] == [EMPTY + b"said"]
    assert bench.episode().closed == "the disk is full"
    bench.start("b")
    assert bench.keep().note == ""


@pytest.fixture
def tmpfs(mount_tmpfs):
    """A real disk of 16 MB, of which a recording takes 8 as its reserve."""
    return mount_tmpfs(16)


@pytest.mark.parametrize("others_mb", [0, 7], ids=["by the recording", "by somebody else"])
def test_real_disk_that_is_full_holds_a_whole_bag_of_everything_up_to_then(tmpfs, others_mb):
    bench = Bench(tmpfs)
    try:
        bench.start()
        (tmpfs / "others").write_bytes(bytes(others_mb << 20))
        said = [EMPTY + os.urandom(50_000) for _ in range(400)]
        for k, data in enumerate(said):
            bench.say(FAST, data)  # never waits, never raises
            if k % 20 == 0:
                until(lambda: bench.recording.waiting_bytes == 0)
        until(lambda: bench.recording.status().state is State.WAITING)
        status = bench.keep()
        assert status.note == "a was closed early: the disk is full"
        assert bench.episode().closed == "the disk is full"
        held = [data for _, _, data in bench.written()]
        assert held == said[: len(held)] and status.messages == len(held)
        assert len(held) * 50_000 > (7 - others_mb) << 20
        with pytest.raises(Refused, match=os.strerror(errno.ENOSPC)):
            bench.start("b")
        assert sorted(p.name for p in tmpfs.iterdir()) == ["a", "others"]
    finally:
        bench.recording.end()
    assert bench.failures == []


def test_disk_that_takes_nothing_at_all_leaves_what_can_be_recovered_and_tells(make, monkeypatch):
    bench = make()
    bench.start()

    def broken(handle, data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    bench.say(FAST)
    monkeypatch.setattr(disk.os, "write", broken)
    until(lambda: bench.recording.status().state is State.IDLE)
    monkeypatch.undo()
    assert "vla bag recover" in bench.recording.status().note
    with pytest.raises(Refused, match="vla bag recover"):
        bench.keep()
    assert (bench.folder / "a.part" / "a_0.mcap").stat().st_size > 0
    bench.start("b")
    bench.keep()


def test_disk_guard_refuses_to_start_and_ends_an_episode(make, monkeypatch):
    bench = make(free_min_bytes=1 << 50)
    with pytest.raises(Invalid, match="free space"):
        bench.start()
    assert list(bench.folder.iterdir()) == []
    second = make()
    second.start("b")

    def guard(folder, free_min_bytes):
        raise Invalid("free space", "1 MB", ">= 500 MB")

    monkeypatch.setattr("vla_ros.data.session.require_free", guard)
    until(lambda: second.recording.status().state is State.WAITING)
    assert second.keep().note.startswith("b was closed early: free space")


def test_last_seconds_are_kept_from_memory(make):
    bench = make(ring_s=2.0)
    with pytest.raises(Refused, match="nothing has been received"):
        bench.recording.last("z", 0.0, Episode).result(WAIT_S)
    for i in range(5000):
        bench.say(FAST, EMPTY + b"%d" % i)
        until(lambda: bench.recording._queued_bytes < 10_000)
    status = bench.recording.last("a", 1.0, lambda: Episode(text="seen")).result(WAIT_S)
    assert (status.folder, status.messages, status.duration_s) == (bench.folder / "a", 1001, 1.0)
    assert [data for _, _, data in bench.written()] == [EMPTY + b"%d" % i for i in range(3999, 5000)]
    assert bench.episode().text == "seen"
    assert bench.recording.last("b", 0.0, Episode).result(WAIT_S).messages == 2001
    with pytest.raises(Invalid, match="seconds"):
        bench.recording.last("c", 3.0, Episode).result(WAIT_S)


def test_last_seconds_can_be_kept_while_something_is_recorded(make):
    bench = make(ring_s=2.0)
    bench.start()
    bench.say(FAST)
    assert bench.recording.last("b", 0.0, Episode).result(WAIT_S).state is State.RECORDING
    bench.say(FAST)
    assert bench.keep().messages == 2
    assert len(bench.written("b")) == 1


def test_without_a_ring_nothing_is_held(make):
    with pytest.raises(Refused, match="ring_s is 0"):
        make().recording.last("a", 0.0, Episode).result(WAIT_S)


def test_leaving_keeps_what_is_open(make):
    bench = make()
    bench.start(text="unfinished")
    bench.say(FAST)
    bench.recording.end()
    assert len(bench.written()) == 1
    assert bench.episode().closed == "the recorder was stopped"
    with pytest.raises(Refused, match="not active"):
        bench.start("b")


@pytest.mark.parametrize(
    "wrong", [{"ring_s": -1.0}, {"ring_s": float("nan")}, {"queue_max_bytes": 0}, {"free_min_bytes": -1}]
)
def test_settings_that_are_not_allowed_are_refused(tmp_path, wrong):
    with pytest.raises(Invalid, match="allowed"):
        Settings(tmp_path, **wrong).validate()
