"""A person at a terminal: takes over from a policy that runs, corrects, hands back; shows a task from beginning to end.

The keys come through a pseudo terminal, as over ssh. One bring-up.
"""

import contextlib
import signal
import sys
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import Joy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from terminal import Terminal

from vla_ros.cli.record import ask
from vla_ros.cli.report import CliError
from vla_ros.core import contract as contracts
from vla_ros.data import recorded as recordings
from vla_ros.data.bag_reader import Bag
from vla_ros.data.episode import Episode
from vla_ros.data.replay import AGAINST_RECORDING
from vla_ros.data.resupervise import Resupervisor, distance
from vla_ros.nodes import qos

pytestmark = pytest.mark.realtime  # the arm must follow keys: a machine that stops it now and then shows nothing
NODES = ("sim", "perception", "policy", "supervisor", "arm_controller", "recorder")
MOVING_M_S = 0.02
WAIT_S = 60.0  # a machine that has too much to do
REPEAT_S = 0.05  # a keyboard's repetition


@pytest.fixture(scope="module")
def graph(make_graph, fake_policy, tmp_path_factory):
    graph = make_graph()
    graph.episodes = tmp_path_factory.mktemp("episodes")
    parameters = {"sim": {"seed": 3}, "recorder": {"folder": graph.episodes, "free_min_mb": 1, "ring_s": 0.0}}
    for name in NODES:
        graph.start(name, script=fake_policy if name == "policy" else None, **parameters.get(name, {}))
    graph.wait_active(*NODES)
    graph.driver = []
    graph.client.subscribe(Bool, "teleoperated", "teleoperated", lambda m: graph.driver.append(m.data))
    graph.wait(lambda: graph.client.state is not None and graph.driver, 10.0, "no safety_state")
    return graph


def armed(graph):
    """The arm may move; asked again where the machine was too slow for it a moment ago."""
    for _ in range(9):
        with contextlib.suppress(AssertionError):
            return graph.rearm()
    return graph.rearm()


def swaying(graph):
    """The policy moves the arm; the number of its instruction. A process that starts may cost the control loops so much
    that the arm is stopped: then again."""
    client = graph.client
    for _ in range(9):
        armed(graph)
        if not client.instruct("sway").accepted:
            continue
        if client.wait_until(lambda: client.state.tool_speed > MOVING_M_S and client.state.instruction_id, 5.0):
            return client.state.instruction_id
    raise AssertionError(f"no sway: {client.state}")


class Person(Terminal):
    """`vla teleop` in a pseudo terminal of its own."""

    def __init__(self, graph, *arguments):
        self.graph = graph
        super().__init__([sys.executable, "-m", "vla_ros.cli.main", "teleop", *arguments], graph.environment)
        self.wait(lambda: b"take over" in self.shown and not self.echoes, "no key help")

    def wait(self, condition, what, keys=""):
        """Until it holds; meanwhile the keys are held down."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: {self.graph.client.state}\n{self.shown[-3000:].decode()}"
            assert self.process.poll() is None, self.shown.decode()
            self.graph.check()
            self.press(keys)
            time.sleep(REPEAT_S)

    def see(self, condition, what, keys=""):
        """As `wait`, of an arm that may move; one that is stopped meanwhile, on a busy machine, will not."""
        client = self.graph.client
        self.wait(lambda: client.state.reason == "arm_latched" or condition(), what, keys)
        assert client.state.reason != "arm_latched", f"{what}: stopped for want of commands; {client.state}"

    def begin(self):
        """The task, until it is under way: a machine that has too much to do stops the arm now and then."""
        client = self.graph.client
        for _ in range(10):
            self.press("r")
            if not client.wait_until(lambda: not client.state.latched, 3.0):
                continue
            self.press("\r")
            if client.wait_until(lambda: client.state.phase == "moving", 3.0):
                return
        raise AssertionError(f"not begun: {client.state}\n{self.shown[-3000:].decode()}")

    def leave(self, number=None):
        """By Ctrl-C, or a signal."""
        if number is None:
            self.press("\x03")
        else:
            self.process.send_signal(number)
        code = self.ended()
        assert self.as_it_was, "the terminal is not as it was"
        return code


@pytest.fixture
def person(graph):
    people = []

    def make(*arguments):
        people.append(Person(graph, *arguments))
        return people[-1]

    if graph.driver[-1]:  # of a test that failed
        graph.client.call(SetBool, "teleoperate", SetBool.Request(data=False), 10.0)
        graph.wait(lambda: not graph.driver[-1], 10.0, "not handed back")
    armed(graph)
    if ask(graph.client, "STATUS")["state"] != "idle":
        with contextlib.suppress(CliError):  # it has just been kept
            ask(graph.client, "DISCARD")
    yield make
    for one in people:
        one.close()


def said(bag, topic):
    return [bag.decode(message) for message in bag.messages([f"/vla/{topic}"])]


def test_person_corrects_a_policy_and_the_policy_goes_on(graph, person):
    client = graph.client
    someone = person()
    opened = swaying(graph)
    ask(client, "START", name="corrected")
    someone.press("t")
    someone.wait(lambda: graph.driver[-1], "not taken over")
    someone.see(
        lambda: client.state.phase == "moving" and client.state.tool_speed < MOVING_M_S, "the arm does not wait"
    )
    someone.see(lambda: client.state.tool_speed > MOVING_M_S, "the arm does not follow the key", "w")
    someone.see(lambda: client.state.tool_speed < MOVING_M_S / 4, "the arm does not stop without a key")
    assert client.state.instruction_id == opened and client.state.severity < 2
    someone.press("t")
    someone.wait(lambda: not graph.driver[-1], "not handed back")
    someone.see(lambda: client.state.tool_speed > MOVING_M_S, "the policy does not go on")
    assert client.state.instruction_id == opened
    someone.press(" ")  # stop
    someone.wait(lambda: client.state.reason == "interrupt", "no stop")
    assert someone.leave() == 0
    ask(client, "KEEP")
    bag = Bag.open(graph.episodes / "corrected")
    drove = [m.data for m in said(bag, "teleoperated")]
    assert [b for a, b in zip([None, *drove], drove, strict=False) if a is not b] == [False, True, False]
    assert {m.instruction_id for m in said(bag, "teleop_chunk")} == {opened}
    assert_replays(bag)


def assert_replays(bag):
    """Through the same supervisor, offline: commands as recorded."""
    contract = contracts.load("panda")
    recorded = recordings.read(bag, contract)
    commands = dict(zip(recorded.tick_ns, recorded.commands, strict=True))
    first = min(m.sequence for m in recorded.messages["teleop_chunk"])
    assert first == 1, f"the recorder has found the person at chunk {first}"
    again = Resupervisor(bag, contract, recorded).run()
    pairs = [(q, np.asarray(commands[t].position)) for t, q in zip(again.tick_ns, again.q_rad, strict=True)]
    rad, mm = distance(contract, pairs)
    assert rad <= AGAINST_RECORDING.command_rad and mm <= AGAINST_RECORDING.command_mm, (rad, mm, again.notes)
    assert again.events["other_source"] >= 1


def test_person_shows_a_task_that_no_policy_knows_and_the_episode_is_whole(graph, person):
    client = graph.client
    someone = person("--text", "tidy up [everything]", "--take")
    someone.wait(lambda: graph.driver[-1], "not taken over")
    someone.press("n")
    someone.wait(lambda: ask(client, "STATUS")["state"] == "recording", "not recording")
    someone.begin()
    someone.see(lambda: client.state.tool_speed > MOVING_M_S, "no motion", "\x1b[B")
    someone.press("g")
    someone.see(lambda: client.state.tool_speed < MOVING_M_S / 4, "does not stand")
    someone.press("\r")
    someone.wait(lambda: client.state.phase == "done", "not done")
    someone.press("y")
    someone.wait(lambda: ask(client, "STATUS")["state"] == "idle", "not kept")
    assert someone.leave(signal.SIGTERM) == 0
    graph.wait(lambda: not graph.driver[-1], 5.0, "not handed back")
    (folder,) = [path for path in graph.episodes.iterdir() if path.name.endswith("tidy_up_everything")]
    bag = Bag.open(folder)
    episode = Episode.from_custom_data(bag.custom_data)
    assert (episode.text, episode.success) == ("tidy up [everything]", True)
    told = [m.text for m in said(bag, "instruction")]
    assert told[0] == episode.text and told[-1] == ""
    assert all(m.data for m in said(bag, "teleoperated")) and len(said(bag, "teleop_chunk")) > 3
    widths = [m.gripper_width for m in said(bag, "safe_command")]
    assert widths[0] > 0.07 and widths[-1] == 0.0
    assert not [e.text for e in said(bag, "safety_event") if e.rule not in ("other_source", "flushed")]


def test_person_whose_connection_breaks_leaves_an_arm_that_stands(graph, person):
    client = graph.client
    someone = person("--text", "wander about", "--take")
    someone.wait(lambda: graph.driver[-1], "not taken over")
    someone.begin()
    someone.see(lambda: client.state.tool_speed > MOVING_M_S, "no motion", "a")
    someone.hang_up()
    someone.ended()
    graph.wait(lambda: client.state.tool_speed == 0.0 and not graph.driver[-1], 5.0, "the arm does not stand")
    assert client.state.instruction_id == 0


DEADMAN, CONTROL, TASK = 4, 7, 3  # buttons, as PadMapping has them
AHEAD = 1  # axis


def test_gamepad_moves_the_arm_only_while_its_deadman_is_held_and_stops_when_it_is_unplugged(graph):
    client = graph.client
    armed(graph)
    graph.start("teleop", text="wander about")
    graph.wait_active("teleop")
    joy = client.node.create_publisher(Joy, "joy", qos.offered("joy"))

    def hold(*buttons, until, ahead=0.0, what=""):
        deadline_s = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s, f"{what}: {client.state}\n{graph.tail('teleop')}"
            graph.check()
            assert not what or client.state.reason != "arm_latched", f"{what}: stopped for want of commands"
            axes = [ahead if k == AHEAD else 0.0 for k in range(8)]
            joy.publish(Joy(axes=axes, buttons=[int(k in buttons) for k in range(11)]))
            time.sleep(REPEAT_S)

    def pressed(button, until, what):
        """A button acts when it goes down; again after a while, for a service may not have been found yet."""
        for _ in range(10):
            ends_s = time.monotonic() + 0.3
            hold(DEADMAN, until=lambda ends_s=ends_s: time.monotonic() > ends_s)
            ends_s += 5.0
            hold(DEADMAN, button, until=lambda ends_s=ends_s: until() or time.monotonic() > ends_s)
            if until():
                return
        raise AssertionError(f"{what}: {client.state}\n{graph.tail('teleop')}")

    pressed(CONTROL, lambda: graph.driver[-1], "not taken over")
    armed(graph)
    pressed(TASK, lambda: client.state.phase == "moving", "not begun")
    from_tick = client.state.ticks
    hold(ahead=-1.0, until=lambda: client.state.ticks > from_tick + 50)
    assert client.state.tool_speed < MOVING_M_S  # without the deadman
    hold(DEADMAN, ahead=-1.0, until=lambda: client.state.tool_speed > MOVING_M_S, what="does not move")
    graph.wait(lambda: client.state.tool_speed < MOVING_M_S / 4, 10.0, "does not stop when the pad falls silent")
    pressed(CONTROL, lambda: not graph.driver[-1], "not handed back")
