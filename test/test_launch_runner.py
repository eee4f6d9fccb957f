"""The strict launch runner: the same argv as launch_ros, or an error that names what is outside the subset."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vla_ros import paths
from vla_ros.cli import launch_runner
from vla_ros.cli.launch_runner import LaunchSession, OutsideSubset

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ("FASTDDS_DEFAULT_PROFILES_FILE", "ROS_AUTOMATIC_DISCOVERY_RANGE")
DEADLINE_S = 20.0


@pytest.fixture
def clean_environment(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def plan(file, arguments, scratch):
    return launch_runner.make_plan(launch_runner.find_launch_file(file), arguments, scratch)


def flatten(plans):
    """argv without machine paths: the executable's name, and the content of parameter files made for the run."""
    flat = []
    for argv in plans:
        shown = [Path(argv[0]).name.removeprefix("vla_ros.nodes.")]
        for word in argv[1:]:
            if Path(word).name.startswith("launch_params_"):
                shown.append(yaml.safe_load(Path(word).read_text()))
            else:
                shown.append(word.replace(str(paths.share_dir()), "<share>"))
        flat.append(shown)
    return flat


def golden(name, namespace, log_level, params_file, values):
    return [
        name,
        *("--ros-args", "--log-level", log_level, "--enclave", f"/vla/{name}", "--ros-args"),
        *("-r", f"__node:={name}", "-r", f"__ns:=/{namespace}"),
        *("--params-file", params_file),
        *("--params-file", {f"/{namespace}/{name}": {"ros__parameters": values}}),
    ]


def golden_core(robot, seed, policy, *shared):
    body = {"contract": robot}
    return [
        golden("arm_controller", *shared, body),
        golden("supervisor", *shared, body | {"operator_heartbeat": "contract"}),
        golden("perception", *shared, body),
        golden("policy", *shared, body | {"policy_path": policy, "seed": seed}),
    ]


def golden_sim(robot, seed, family, render, *shared):
    return golden("sim", *shared, {"contract": robot, "seed": seed, "family": family, "render": render})


DEFAULTS = ("vla", "info", "<share>/config/nodes.yaml")
OWN = ("left", "debug", "<share>/config/fastdds.xml")  # any existing file
OWN_ARGUMENTS = {
    "robot": "/robots/mine.yaml",
    "namespace": "left",
    "policy": "policies/two words",
    "seed": "7",
    "log_level": "debug",
    "params_file": str(paths.fastdds_profile()),
}
GOLDEN = {
    "sim": ("sim", {}, [*golden_core("panda", 0, "", *DEFAULTS), golden_sim("panda", 0, "", True, *DEFAULTS)]),
    "sim_own": (
        "sim.launch.py",
        OWN_ARGUMENTS | {"family": "pick", "render": "false", "engine": "mujoco"},
        [
            *golden_core("/robots/mine.yaml", 7, "policies/two words", *OWN),
            golden_sim("/robots/mine.yaml", 7, "pick", False, *OWN),
        ],
    ),
    "recorded": (
        "real",
        {"record": "true", "record_folder": "my episodes"},
        [
            *golden_core("panda", 0, "", *DEFAULTS),
            golden("recorder", *DEFAULTS, {"contract": "panda", "folder": "my episodes"}),
        ],
    ),
    "real": ("real", {}, golden_core("panda", 0, "", *DEFAULTS)),
    "real_own": ("real", OWN_ARGUMENTS, golden_core("/robots/mine.yaml", 7, "policies/two words", *OWN)),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", GOLDEN)
def test_launch_file_makes_the_argv_that_launch_ros_makes(case, tmp_path, clean_environment):
    file, arguments, expected = GOLDEN[case]
    plans = plan(file, arguments, tmp_path)
    assert flatten([p.argv for p in plans]) == expected
    assert [p.name for p in plans] == [row[0] for row in expected]


@pytest.mark.unit
@pytest.mark.parametrize("case", GOLDEN)
def test_real_launch_makes_the_same_argv(case, tmp_path):
    pytest.importorskip("launch_ros", reason="ROS 2's launch is not installed")
    file, arguments, _ = GOLDEN[case]
    arguments = {"params_file": str(paths.config_dir() / "nodes.yaml")} | arguments
    path = launch_runner.find_launch_file(file)
    given = [f"{name}:={value}" for name, value in arguments.items()]
    # The real one looks the package up in the ament index; the profile is where that copy is.
    environment = os.environ | {"FASTDDS_DEFAULT_PROFILES_FILE": "kept.xml"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "test" / "real_launch_plan.py"), ",".join(ENVIRONMENT), str(path), *given],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = launch_runner.make_plan(path, arguments, tmp_path, environment)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for one in theirs:
        for name, text in one["files"].items():
            copy = tmp_path / Path(name).name
            copy.write_text(text)
            one["argv"] = [str(copy) if word == name else word for word in one["argv"]]
    assert flatten([p.argv for p in ours]) == flatten([one["argv"] for one in theirs])
    for mine, one in zip(ours, theirs, strict=True):
        assert {name: mine.environment[name] for name in ENVIRONMENT} == one["environment"]


@pytest.mark.unit
def test_fast_dds_profile_and_local_discovery_are_defaults_that_the_user_can_replace(tmp_path, clean_environment):
    environment = plan("sim", {}, tmp_path)[0].environment
    assert environment["FASTDDS_DEFAULT_PROFILES_FILE"] == str(paths.fastdds_profile())
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    own = {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml", "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    file = launch_runner.find_launch_file("sim")
    for process in launch_runner.make_plan(file, {}, tmp_path, own):
        assert own.items() <= process.environment.items()


@pytest.mark.unit
def test_nodes_leave_shared_memory_unless_the_user_decided():
    own = {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    several_hosts = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    for environment in (own, several_hosts):
        paths.set_ros_environment(environment)
        before = dict(environment)
        paths.leave_shared_memory(environment)
        assert environment == before
    shipped = dict[str, str]()
    paths.set_ros_environment(shipped)
    paths.leave_shared_memory(shipped)
    profile = Path(shipped["FASTDDS_DEFAULT_PROFILES_FILE"]).read_text()
    assert "<address>127.0.0.1</address>" in profile  # the range no longer keeps it here
    assert "<type>SHM</type>" not in profile
    assert shipped["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("file", "arguments", "parts"),
    [
        ("sim", ["sped:=7"], ["'sped'", "known:", "robot", "seed"]),
        ("real", ["render:=true"], ["'render'", "known:", "robot"]),
        ("sim", ["seed"], ["'seed'", "name:=value"]),
        ("sim", ["seed:=1", "seed:=2"], ["'seed'", "twice"]),
        ("sim", ["seed:=many"], ["'many'", "int"]),
        ("sim", ["engine:=gazebo"], ["gazebo", "allowed: mujoco", "not supported yet"]),
        ("sim", ["render:=maybe"], ["maybe", "true, false"]),
        ("sim", ["log_level:=loud"], ["loud", "debug"]),
        ("sim", ["namespace:=9lives"], ["'9lives'", "letters"]),
        ("sim", ["params_file:=/none.yaml"], ["/none.yaml", "does not exist"]),
        ("simulation", [], ["'simulation'", "shipped: core, real, sim"]),
    ],
)
def test_wrong_argument_gets_a_clear_answer_and_starts_nothing(file, arguments, parts, capsys, monkeypatch):
    monkeypatch.setattr(launch_runner, "real_launch_is_installed", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    assert launch_runner.main([file, *arguments]) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


@pytest.mark.unit
def test_show_args_lists_every_argument_also_of_included_files(capsys):
    assert launch_runner.main(["sim", "--show-args"]) == 0
    shown = capsys.readouterr().out
    for name in ("robot", "namespace", "policy", "seed", "log_level", "params_file", "engine", "family", "render"):
        assert f"\n    {name}\n" in shown


OUTSIDE = {
    "launch.actions.OpaqueFunction": "from launch.actions import OpaqueFunction",
    "launch.substitutions.Command": "import launch.substitutions\nlaunch.substitutions.Command",
    "module launch.event_handlers": "from launch.event_handlers import OnProcessExit",
    "module launch_xml": "",
    "Node(respawn=...)": "from launch_ros.actions import Node\nNode(package='vla_ros', executable='sim', respawn=True)",
    "launch_ros.actions.ComposableNodeContainer": "from launch_ros.actions import ComposableNodeContainer",
    "LogInfo(condition2=...)": "from launch.actions import LogInfo\nLogInfo(msg='x', condition2=1)",
    "ParameterValue(value_type=<class 'list'>)": (
        "from launch_ros.parameter_descriptions import ParameterValue\nParameterValue('x', value_type=list)"
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("symbol", [s for s in OUTSIDE if OUTSIDE[s]])
def test_symbol_outside_the_subset_is_named_and_ros2_launch_recommended(symbol, tmp_path):
    file = tmp_path / "x.launch.py"
    file.write_text(OUTSIDE[symbol] + "\ndef generate_launch_description():\n    raise SystemExit\n")
    with pytest.raises(OutsideSubset, match="ros2 launch") as caught:
        launch_runner.known_arguments(file)
    assert caught.value.symbol == symbol


@pytest.mark.unit
@pytest.mark.parametrize("name", ["x.launch.xml", "x.launch.yaml"])
def test_xml_and_yaml_launch_files_are_refused(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(OutsideSubset, match="Python"):
        launch_runner.known_arguments(tmp_path / name)


@pytest.mark.unit
def test_subset_leaves_no_trace_in_sys_modules():
    before = {name for name in sys.modules if name.partition(".")[0] in ("launch", "launch_ros")}
    launch_runner.known_arguments(launch_runner.find_launch_file("sim"))
    assert {name for name in sys.modules if name.partition(".")[0] in ("launch", "launch_ros")} == before


GROUP = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, SetEnvironmentVariable
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace

def generate_launch_description():
    def node(name, **other):
        return Node(package="vla_ros", executable="sim", name=name, **other)
    return LaunchDescription([
        DeclareLaunchArgument("extra", default_value="false"),
        GroupAction([PushRosNamespace("a"), PushRosNamespace("b"), SetEnvironmentVariable("INSIDE", "1"), node("one"),
                     node("two", namespace="c"), node("three", namespace="/d")]),
        node("four", remappings=[("x", "y")], arguments=["-v"]),
        node("five", condition=IfCondition(LaunchConfiguration("extra"))),
        node("six", condition=UnlessCondition(LaunchConfiguration("extra"))),
    ])
"""


@pytest.mark.unit
def test_namespaces_conditions_and_scopes_follow_launch(tmp_path):
    file = tmp_path / "group.launch.py"
    file.write_text(GROUP)
    plans = {p.name: p for p in launch_runner.make_plan(file, {}, tmp_path, {})}
    namespaces = {n: [w for w in p.argv if w.startswith("__ns:=")] for n, p in plans.items()}
    assert namespaces == {"one": ["__ns:=/a/b"], "two": ["__ns:=/a/b/c"], "three": ["__ns:=/d"], "four": [], "six": []}
    assert plans["one"].environment == {"INSIDE": "1"} and plans["four"].environment == {}
    assert plans["four"].argv[1:] == ("-v", "--ros-args", "-r", "__node:=four", "-r", "x:=y")


# ---------------------------------------------------------------------------------------------- real processes

FAKES = {
    "polite": "import signal, sys\nsignal.signal(2, lambda *a: sys.exit(0))\nprint('up', flush=True)\nsignal.pause()",
    "deaf": "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nprint('up', flush=True)\n"
    "while True: signal.pause()",
    "broken": "print('no contract', flush=True)\nraise SystemExit(3)",
    "node": "import rclpy, signal\nrclpy.init()\nnode = rclpy.create_node('left_behind')\nprint('up', flush=True)\n"
    "signal.pause()",
}


@pytest.fixture
def launch_fakes(tmp_path, monkeypatch):
    """A launch file that starts the named fake executables of an installed package `fakes`."""
    folder = tmp_path / "lib" / "fakes"
    folder.mkdir(parents=True)
    (tmp_path / "share" / "fakes").mkdir(parents=True)
    for name, code in FAKES.items():
        (folder / name).write_text(f"#!/usr/bin/env python3\n{code}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{sys.prefix}")
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(paths.fastdds_profile()))
    monkeypatch.setenv("ROS_DOMAIN_ID", "97")  # no port shared with another graph on this machine

    def make(*names):
        file = tmp_path / "fakes.launch.py"
        nodes = ", ".join(f"Node(package='fakes', executable='{name}')" for name in names)
        file.write_text(
            "from launch import LaunchDescription\nfrom launch_ros.actions import Node\n"
            f"def generate_launch_description():\n    return LaunchDescription([{nodes}])\n"
        )
        return file

    return make


def wait_until(condition, what):
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            pytest.fail(f"{what} did not happen within {DEADLINE_S} s")
        time.sleep(0.02)  # poll


@pytest.mark.process
def test_polite_processes_end_at_sigint_and_lines_carry_the_name(launch_fakes):
    lines = []
    with LaunchSession(launch_fakes("polite", "polite"), output=lambda *line: lines.append(line)) as session:
        wait_until(lambda: {("polite", "up"), ("polite-2", "up")} <= set(lines), "start")
        assert set(session.processes) == {"polite", "polite-2"} and session.wait(timeout_s=0.0) is None
        asked_s = time.monotonic()
        assert session.stop() == {"polite": 0, "polite-2": 0}
        assert time.monotonic() - asked_s < launch_runner.SIGINT_GRACE_S
    assert session.ended_early == {}


@pytest.mark.process
def test_deaf_process_is_killed_after_sigint_and_sigterm(launch_fakes, monkeypatch):
    monkeypatch.setattr(launch_runner, "SIGINT_GRACE_S", 0.2)
    monkeypatch.setattr(launch_runner, "SIGTERM_GRACE_S", 0.2)
    with LaunchSession(launch_fakes("deaf", "polite"), output=None) as session:
        wait_until(lambda: session.tail("deaf") and session.tail("polite"), "start")
        assert session.stop() == {"deaf": -signal.SIGKILL, "polite": 0}
    assert "killed" in session.tail("deaf")[-1]


@pytest.mark.process
def test_process_that_fails_by_itself_is_reported_with_its_last_lines(launch_fakes):
    with LaunchSession(launch_fakes("broken"), output=None) as session:
        assert session.wait(timeout_s=DEADLINE_S) == 1
    assert session.ended_early == {"broken": 3}
    assert "no contract" in session.tail("broken")


@pytest.mark.process
def test_shared_memory_of_a_killed_node_is_removed_and_that_of_living_ones_kept(launch_fakes):
    with (
        LaunchSession(launch_fakes("node"), output=None) as living,
        LaunchSession(launch_fakes("node"), output=None) as killed,
    ):
        wait_until(lambda: living.tail("node") and killed.tail("node"), "start")
        names = [locked_segments(s.processes["node"].pid) for s in (living, killed)]
        kept, orphaned = (names[0] - names[1], names[1] - names[0])
        assert kept and orphaned
        killed.running()  # notes what is mapped, as wait() does
        os.kill(killed.processes["node"].pid, signal.SIGKILL)
        wait_until(lambda: not killed.running(), "death")
        assert all((launch_runner.SHM / name).exists() for name in orphaned)
        killed.stop()
        assert not any((launch_runner.SHM / name).exists() for name in orphaned)
        assert all((launch_runner.SHM / name).exists() for name in kept)
        living.stop()
    assert not any((launch_runner.SHM / name).exists() for name in kept | living.segments | killed.segments)


def locked_segments(pid):
    """Segments that this process made: it has their lock file open."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {Path(link).name.removesuffix("_el") for link in links if re.search(r"/fastdds_[0-9a-f]{16}_el$", link)}


RUN_SUBSET = """
import pathlib, sys
from vla_ros.cli.launch_runner import run_subset
sys.exit(run_subset(pathlib.Path(sys.argv[1]), {}))
"""


@pytest.mark.process
def test_ctrl_c_on_the_runner_stops_every_process(launch_fakes):
    runner = subprocess.Popen(
        [sys.executable, "-c", RUN_SUBSET, str(launch_fakes("polite", "polite"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert {runner.stdout.readline() for _ in range(2)} == {"[polite] up\n", "[polite-2] up\n"}
        children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
        assert len(children) == 2
        runner.send_signal(signal.SIGINT)
        assert runner.wait(timeout=DEADLINE_S) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    finally:
        runner.kill()
        runner.communicate()
