"""A bag that was cut off or damaged is rebuilt; what is kept is what was written, what is lost is told."""

from __future__ import annotations

import json
import random

import bags
import pytest
from mcap.reader import SeekingReader
from rosbags.highlevel import AnyReader
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.errors import Invalid
from vla_ros.data.bag_reader import Bag, BagError
from vla_ros.data.recover import recover

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return bags.make(tmp_path_factory.mktemp("bags"), "good", seconds=2.0)


def damaged(tmp_path, name, content):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}_0.mcap").write_bytes(content)
    return folder


def read(folder):
    """Everything, by an independent reader."""
    with AnyReader([folder]) as reader:
        return [
            (c.topic, log_ns, bytes(data))
            for c, log_ns, data in reader.messages()
            if reader.deserialize(data, c.msgtype)
        ]


def test_cut_at_random_bytes_every_whole_chunk_is_kept_and_rosbags_reads_it(good, tmp_path):
    source, rng = good / "good_0.mcap", random.Random(1)
    content, written = source.read_bytes(), read(good)
    for k in range(8):
        size = rng.randrange(len(content))
        done = recover(damaged(tmp_path, f"cut{k}", content[:size]), tmp_path / f"out{k}")
        kept = read(tmp_path / f"out{k}") if done.messages else []
        assert set(kept) <= set(written)
        assert all(held <= set(kept) for end, held in bags.chunks(source) if end <= size)
        assert not done.unverified and len(kept) == done.messages


def test_cut_just_after_a_chunk_keeps_all_of_it_also_when_the_next_begins_at_the_same_time(tmp_path):
    at_ns = bags.START_NS + bags.NS // 2  # a flush follows the first message that is this late
    source = bags.make(
        tmp_path, "good", seconds=1.0,
        change=lambda m: (m._replace(log_ns=at_ns) if abs(m.log_ns - at_ns) < 5_000_000 else m,),
    ) / "good_0.mcap"  # fmt: skip
    (end, first), (_, second) = bags.chunks(source)
    assert max(log_ns for _, log_ns, _ in first) == min(log_ns for _, log_ns, _ in second) == at_ns
    for more, whole in ((-1, False), (0, True), (1, True)):
        done = recover(damaged(tmp_path, f"cut{more}", source.read_bytes()[: end + more]), tmp_path / f"out{more}")
        kept = set(read(tmp_path / f"out{more}"))
        assert kept == first if whole else kept < first
        assert (done.chunks_whole, done.chunks_partial) == (int(whole), int(not whole))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 30, 400])
def test_a_file_cut_in_its_first_bytes_gives_an_empty_bag(good, tmp_path, size):
    done = recover(damaged(tmp_path, "cut", (good / "good_0.mcap").read_bytes()[:size]), tmp_path / "out")
    assert done.messages == 0 and not done.complete and "no whole message" in " ".join(done.notes)
    assert Bag.open(tmp_path / "out").messages_total == 0


def test_flipped_bits_never_raise_and_cost_few_messages(good, tmp_path):
    content, written, rng = (good / "good_0.mcap").read_bytes(), read(good), random.Random(2)
    for k in range(8):
        broken = bytearray(content)
        flips = rng.choice((1, 3, 20))
        for _ in range(flips):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        done = recover(damaged(tmp_path, f"bad{k}", broken), tmp_path / f"out{k}")
        kept = read(tmp_path / f"out{k}")
        assert len(kept) == done.messages >= len(written) - 4 * flips
        # What differs from what was written is among the messages that the report calls unverified.
        assert len(set(kept) - set(written)) <= done.unverified


def test_a_damaged_chunk_is_told_with_its_time_and_as_unverified(good, tmp_path):
    content = bytearray((good / "good_0.mcap").read_bytes())
    with (good / "good_0.mcap").open("rb") as stream:
        chunk = SeekingReader(stream).get_summary().chunk_indexes[1]
    content[chunk.chunk_start_offset + chunk.chunk_length // 2] ^= 4
    done = recover(damaged(tmp_path, "bad", content), tmp_path / "out")
    assert done.chunks_partial == 1 and done.unverified > 0 and not done.complete
    start_s, end_s = done.holes_s[0]
    assert start_s <= (chunk.message_start_time - bags.START_NS) / 1e9 <= end_s
    assert json.loads(Bag.open(tmp_path / "out").custom_data["recovered"])["unverified"] == done.unverified


def test_what_was_known_at_the_start_of_a_killed_recording_is_kept(good, tmp_path):
    content = (good / "good_0.mcap").read_bytes()
    recover(damaged(tmp_path, "cut", content[: len(content) // 2]), tmp_path / "out")
    episode = Bag.open(tmp_path / "out").episode()
    assert episode.text == "pick up the red cube" and "cut off" in episode.closed


def test_a_bag_without_damage_comes_back_whole(good, tmp_path):
    done = recover(good, tmp_path / "out")
    assert done.complete and read(tmp_path / "out") == read(good)
    assert Bag.open(tmp_path / "out").episode().outcome == "done"


def test_nothing_is_overwritten_and_nothing_half_written_stays(good, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(Invalid, match="does not exist yet"):
        recover(good, tmp_path / "taken")
    with pytest.raises(BagError, match="no MCAP file"):
        recover(tmp_path / "nothing", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_command_prints_one_json_object_and_fails_when_nothing_was_saved(good, tmp_path):
    content = (good / "good_0.mcap").read_bytes()
    cut = damaged(tmp_path, "cut", content[: len(content) // 2])
    result = CliRunner().invoke(app, ["bag", "recover", str(cut), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["chunks_whole"] >= 1
    empty = damaged(tmp_path, "empty", b"")
    result = CliRunner().invoke(app, ["bag", "recover", str(empty), "--out", str(tmp_path / "out2"), "--json"])
    assert result.exit_code == 1 and "no message could be saved" in json.loads(result.stdout)["error"]
