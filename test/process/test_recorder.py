"""The recorder as a process beside one that speaks for a whole graph: files that others read, whatever ends them."""

import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from mcap.exceptions import EndOfFile, McapError
from mcap.records import Message
from mcap.stream_reader import StreamReader

from vla_ros.cli.record import ask
from vla_ros.cli.report import CliError
from vla_ros.core import contract as contracts
from vla_ros.data.bag_reader import Bag
from vla_ros.data.episode import Episode, bag_file
from vla_ros.data.images import decode
from vla_ros.nodes.conversions import stamp_ns

TALKER = Path(__file__).resolve().parents[2] / "benchmarks" / "data" / "talker.py"
SOME = 300  # messages: about a second of what the talker says
WAIT_S = 60.0
LOST_MAX_S = 3.0  # the bar is 0.6 s, in benchmarks/; here a machine may be so slow that the talker itself stalls


class Studio:
    """A graph with a recorder that writes into `folder`."""

    def __init__(self, graph, folder):
        self.graph, self.folder = graph, folder

    def start_recorder(self, **other):
        self.graph.start("recorder", **{"folder": self.folder, "free_min_mb": 1, "ring_s": 20.0, **other})
        self.graph.wait_active("recorder")

    def stop_recorder(self):
        process = self.graph.processes.pop("recorder")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0

    def ask(self, command, **fields):
        return ask(self.graph.client, command, **fields)

    def refused(self, command, **fields):
        with pytest.raises(CliError) as refusal:
            self.ask(command, **fields)
        return str(refusal.value)

    def wait_for(self, messages):
        """Asks from out here: a condition of `wait` is looked at under the lock that the client's thread needs to hear
        an answer."""
        self.graph.wait(lambda: self.graph.client.state is not None, WAIT_S, "nobody speaks")
        begun, deadline_s = self.ask("STATUS")["messages"], time.monotonic() + WAIT_S
        while self.ask("STATUS")["messages"] - begun < messages:
            assert time.monotonic() < deadline_s, f"{messages} messages: not within {WAIT_S:g} s"
            self.graph.check()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def studio(make_graph, tmp_path_factory):
    made = Studio(make_graph(), tmp_path_factory.mktemp("episodes"))
    made.start_recorder()
    return made


@pytest.fixture(scope="module")
def talking(studio):
    """With somebody who speaks."""
    studio.graph.start("talker", script=TALKER)
    return studio


@pytest.fixture
def on_air(talking):
    """With nothing open, whatever became of the test before."""
    if "recorder" not in talking.graph.processes:
        talking.start_recorder()
    if talking.ask("STATUS")["state"] != "idle":
        talking.ask("DISCARD")
    return talking


def test_episode_in_which_nobody_says_anything_is_a_bag(studio):
    assert Path(studio.ask("START", name="silent", text="nothing happens")["episode"]).name == "silent.part"
    assert studio.ask("KEEP")["messages"] == 0
    bag = Bag.open(studio.folder / "silent")
    assert bag.messages_total == 0 and list(bag.messages()) == []
    assert bag.custom_data["text"] == "nothing happens"


def test_everything_that_is_said_is_in_the_episode_and_others_can_read_it(on_air):
    from rosbags.highlevel import AnyReader

    on_air.ask("START", name="first", operator_name="tester")
    on_air.wait_for(3 * SOME)
    kept = on_air.ask("KEEP", outcome="done", success=1)
    bag = Bag.open(on_air.folder / "first")
    with AnyReader([on_air.folder / "first"]) as reader:  # not ours
        assert reader.message_count == kept["messages"] == sum(1 for _ in reader.messages())
    contract = contracts.load("panda")
    episode = Episode.from_custom_data(bag.custom_data)
    assert (episode.outcome, episode.success, episode.operator) == ("done", True, "tester")
    assert (episode.contract_hash, sum(episode.drops.values())) == (contract.hash, kept["drops"])
    for camera in contract.cameras:
        image = bag.decode(next(bag.messages([f"/vla/{camera.topic}/compressed"])))
        assert decode(bytes(image.data)).shape == (camera.height_px, camera.width_px, 3)
        assert image.format == "rgb8; jpeg compressed bgr8"
    observation = bag.decode(next(bag.messages(["/vla/observation"])))
    assert [i.name for i in observation.images] == [c.name for c in contract.cameras]
    assert all(len(i.data) == 0 and i.height == contract.cameras[0].policy_px for i in observation.images)
    assert len(observation.position) == contract.n_joints
    numbers = [int(bag.decode(m).header.frame_id) for m in bag.messages(["/vla/joint_states"])]
    assert len(numbers) > 100 and numbers[-1] - numbers[0] + 1 - len(numbers) == episode.drops.get(
        "/vla/joint_states", 0
    )
    for name in ("action_chunk", "safe_command", "safety_state", "policy_status", "arm_state", "perception_status"):
        assert bag.topics[f"/vla/{name}"].count > 0, name


def test_folder_that_exists_is_refused_and_so_is_a_second_episode(on_air):
    (on_air.folder / "taken").mkdir()
    assert "does not exist" in on_air.refused("START", name="taken")
    assert list((on_air.folder / "taken").iterdir()) == []
    assert "episode name" in on_air.refused("START", name="../elsewhere")
    assert "nothing is being recorded" in on_air.refused("STOP")
    on_air.ask("START", name="open")
    assert "open is being recorded" in on_air.refused("START", name="another")
    assert on_air.ask("STOP")["state"] == "waiting"
    assert on_air.ask("DISCARD")["state"] == "idle"
    assert not (on_air.folder / "open").exists() and not (on_air.folder / "open.part").exists()


def test_last_seconds_are_kept_after_they_have_happened(on_air):
    kept = on_air.ask("LAST", name="just_now", seconds=2.0)
    bag = Bag.open(kept["episode"])
    assert bag.messages_total == kept["messages"] > SOME
    assert 0.5 < bag.duration_s <= 2.1


@pytest.fixture
def supervised(on_air):
    """With a supervisor, gone afterwards whatever became of the test."""
    on_air.graph.start("supervisor")
    try:
        on_air.graph.wait_active("supervisor")
        yield on_air
    finally:
        on_air.graph.kill("supervisor")


@pytest.mark.realtime  # the supervisor must have discovered the recorder by then
def test_goal_of_execute_becomes_an_episode_with_its_outcome(supervised):
    client = supervised.graph.client
    result = client.execute("put the red cube into the bowl", 5.0).get_result_async()
    supervised.graph.wait(result.done, WAIT_S, "the result of the goal")  # nobody reports as a ready policy: refused
    answer = result.result().result
    assert answer.outcome == answer.OUTCOME_REFUSED
    bag = Bag.open(answer.episode_uri.removeprefix("file://"))
    assert (bag.custom_data["outcome"], bag.custom_data["operator"]) == ("refused", "execute")
    assert bag.custom_data["text"] == "put the red cube into the bowl"
    assert bag.custom_data["outcome_reason"] == answer.reason


def test_recorder_that_is_asked_to_leave_keeps_what_is_open(on_air):
    on_air.ask("START", name="unfinished")
    on_air.wait_for(SOME)
    on_air.stop_recorder()
    bag = Bag.open(on_air.folder / "unfinished")
    assert bag.messages_total >= SOME and bag.custom_data["closed"] == "the recorder was stopped"
    on_air.start_recorder()


@pytest.fixture
def small_disk(mount_tmpfs):
    """A file system of 11 MB, of which 8 are the recorder's reserve."""
    return mount_tmpfs(11)


def test_disk_that_is_full_ends_the_episode_as_a_whole_bag_and_the_operator_is_told(on_air, small_disk):
    on_air.stop_recorder()
    on_air.start_recorder(folder=small_disk, free_min_mb=0, ring_s=0.0)
    try:
        on_air.ask("START", name="full")
        deadline_s = time.monotonic() + WAIT_S
        while on_air.ask("STATUS")["state"] != "waiting":
            assert time.monotonic() < deadline_s, "the disk does not fill up"
            time.sleep(0.2)
        health = on_air.graph.client.health
        on_air.graph.wait(lambda: health["recorder"].values.get("closed_early") == "1", WAIT_S, "it is not shown")
        assert health["recorder"].values["note"] == "full was closed early: the disk is full"
        kept = on_air.ask("KEEP")
        assert "the disk is full" in kept["reason"]
        bag = Bag.open(small_disk / "full")
        assert bag.custom_data["closed"] == "the disk is full"
        assert bag.messages_total == kept["messages"] == sum(1 for _ in bag.messages()) > SOME
    finally:
        on_air.stop_recorder()


def test_killed_recorder_leaves_all_but_the_last_moment(on_air):
    on_air.ask("START", name="killed")
    on_air.wait_for(3 * SOME)
    killed_ns = stamp_ns(on_air.graph.client.node.get_clock().now().to_msg())
    on_air.graph.kill("recorder")
    last_ns = count = 0
    with bag_file(on_air.folder / "killed.part").open("rb") as file, pytest.raises((EndOfFile, McapError)):
        for record in StreamReader(file).records:
            if isinstance(record, Message):
                last_ns, count = max(last_ns, record.log_time), count + 1
    assert count > SOME
    assert (killed_ns - last_ns) * 1e-9 < LOST_MAX_S
    on_air.start_recorder()
    assert "does not exist" in on_air.refused("START", name="killed")
