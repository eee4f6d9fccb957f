"""Who may say what in the graph, and that nothing starts open that was to be closed."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vla_ros import paths
from vla_ros.core import contract as contracts

ROOT = Path(__file__).resolve().parent.parent
NODES = ("arm_controller", "perception", "policy", "recorder", "sim", "supervisor", "teleop")
POLICIES = (*NODES, "operator")
FOLDER = paths.config_dir() / "security"
INCLUDE = "{http://www.w3.org/2001/XInclude}include"
RIGHTS = {
    ("topics", "publish"), ("topics", "subscribe"), ("services", "reply"), ("services", "request"),
    ("actions", "execute"), ("actions", "call"),
}  # fmt: skip
pytestmark = pytest.mark.unit


def granted(profile):
    """(kind, right) -> names, of one <profile>; every element is understood or the test fails."""
    found = {key: set() for key in RIGHTS}
    for block in profile:
        if block.tag == INCLUDE:
            assert block.attrib["href"] == "common.xml"
            continue
        for right, verdict in block.attrib.items():
            assert (block.tag, right) in RIGHTS and verdict == "ALLOW"
            for entry in block:
                assert entry.tag == block.tag[:-1] and re.fullmatch(r"[/~]?[\w/]+", entry.text)
                found[block.tag, right].add(entry.text)
    return found


def policy(name):
    """All that the enclave of a process may do, its common part left out."""
    enclaves = ElementTree.parse(FOLDER / f"{name}.xml").getroot().findall("enclaves/enclave")
    assert [enclave.attrib["path"] for enclave in enclaves] == [f"/vla/{name}"]
    profiles = enclaves[0].findall("profiles/profile")
    assert all(p.attrib["ns"] == "/vla" and p.find(INCLUDE) is not None for p in profiles)
    each = [granted(profile) for profile in profiles]
    return {key: set().union(*(one[key] for one in each)) for key in RIGHTS}


def names_of(expression):
    """Topics that the first argument of an endpoint in a node's code stands for, with the shipped contract."""
    contract = contracts.load("panda")
    text = ast.unparse(expression)
    known = {
        "contract.arm.joint_state_topic": {contract.arm.joint_state_topic},
        "contract.arm.command_topic": {contract.arm.command_topic},
        "contract.arm.gripper_topic": {contract.arm.gripper_topic},
        "camera.topic": {camera.topic for camera in contract.cameras},
        "c.topic": {camera.topic for camera in contract.cameras},
        "conversions.camera_info_topic(c.topic)": {f"camera/{c.name}/camera_info" for c in contract.cameras},
    }
    return {expression.value} if isinstance(expression, ast.Constant) else known[text]


def spoken(node):
    """What the source of a node makes: publishers, subscriptions, services."""
    tree = ast.parse((ROOT / "vla_ros" / "nodes" / f"{node}.py").read_text())
    made = {key: set() for key in RIGHTS}
    kinds = {"publisher": ("topics", "publish"), "subscribe": ("topics", "subscribe")}
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        function = ast.unparse(call.func)
        if function.startswith("self.") and function[5:] in kinds:
            made[kinds[function[5:]]] |= names_of(call.args[1])
        elif function == "JointSource":
            made["topics", "subscribe"] |= {contracts.load("panda").arm.joint_state_topic}
        elif function == "self.serve" and isinstance(call.args[1], ast.Constant):
            made["services", "reply"].add(call.args[1].value)
        elif function == "self.create_client":
            made["services", "request"].add(call.args[1].value)
        elif function == "GoalServer":
            made["actions", "execute"].add(call.args[2].value)
        elif function == "EpisodeRequests":
            made["services", "request"].add("record")
    if node == "sim":  # made in a loop
        made["services", "reply"] |= {"sim/outcome", "sim/reset"}
    if node == "recorder":  # from a table
        from vla_ros.data.images import Coding
        from vla_ros.nodes.recorded_topics import sources

        made["topics", "subscribe"] |= {source.name for source in sources(contracts.load("panda"), Coding())}
    return made


@pytest.mark.parametrize("node", NODES)
def test_policy_of_a_node_allows_exactly_what_its_code_does(node):
    assert policy(node) == spoken(node)


def test_whoever_is_heard_has_a_speaker_and_every_service_an_asker():
    every = [policy(name) for name in POLICIES]
    for kind, offer, use in (("topics", "publish", "subscribe"), ("services", "reply", "request")):
        offered = set().union(*(one[kind, offer] for one in every)) | {"/diagnostics", "joy"}  # of the gamepad's driver
        offered |= {f"{node}/{service}" for node in NODES for service in ("get_state", "set_parameters")}
        assert set().union(*(one[kind, use] for one in every)) <= offered
    asked = set().union(*(one["services", "request"] for one in every))
    assert set().union(*(one["services", "reply"] for one in every)) <= asked


@pytest.mark.parametrize(
    ("topic", "writer"),
    [
        ("safe_command", "supervisor"),
        ("instruction", "supervisor"),
        ("safety_state", "supervisor"),
        ("action_chunk", "policy"),
        ("observation", "perception"),
        ("perception_status", "perception"),
        ("arm_state", "arm_controller"),
        ("joint_trajectory_controller/joint_trajectory", "arm_controller"),
        ("gripper_controller/commands", "arm_controller"),
        ("teleoperated", "supervisor"),
        ("teleop_chunk", "teleop"),
        ("reduced_speed", "operator"),
    ],
)
def test_what_moves_or_stops_an_arm_has_exactly_one_writer(topic, writer):
    assert [name for name in POLICIES if topic in policy(name)["topics", "publish"]] == [writer]


@pytest.mark.parametrize("service", ["interrupt", "rearm", "instruct", "home", "retreat", "teleoperate"])
def test_only_people_ask_the_supervisor(service):
    """The vla command, and whoever drives by hand."""
    assert {name for name in POLICIES if service in policy(name)["services", "request"]} - {"teleop"} == {"operator"}


@pytest.mark.parametrize("topic", ["interrupt", "operator_heartbeat"])
def test_only_people_stop_an_arm_and_say_that_somebody_is_there(topic):
    assert {name for name in POLICIES if topic in policy(name)["topics", "publish"]} == {"operator", "teleop"}


def test_operator_may_do_what_the_command_line_does():
    """Every topic and service that the client and the commands name."""
    allowed = policy("operator")
    for path in (ROOT / "vla_ros" / "cli").glob("*.py"):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            function, arguments = ast.unparse(call.func), [a for a in call.args if isinstance(a, ast.Constant)]
            if function.endswith("create_publisher"):
                assert arguments[0].value in allowed["topics", "publish"], (path.name, ast.unparse(call))
            elif function.endswith(".subscribe") and arguments and isinstance(call.args[1], ast.Constant):
                assert arguments[0].value in allowed["topics", "subscribe"], (path.name, ast.unparse(call))
            elif function.endswith(".trigger") and arguments:
                assert arguments[0].value in allowed["services", "request"], (path.name, ast.unparse(call))


def test_no_other_policy_is_shipped_and_the_launch_files_name_the_enclaves():
    assert {path.stem for path in FOLDER.glob("*.xml")} == {*POLICIES, "common"}
    granted(ElementTree.parse(FOLDER / "common.xml").getroot())
    launch = "".join(path.read_text() for path in paths.launch_dir().glob("*.launch.py"))
    assert 'f"/vla/{name}"' in launch and '"/vla/sim"' in launch


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ROS_SECURITY_ENABLE": "TRUE"}, "'TRUE'"),
        ({"ROS_SECURITY_ENABLE": "1"}, "'1'"),
        ({"ROS_SECURITY_ENABLE": "true"}, "ROS_SECURITY_STRATEGY"),
        ({"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Permissive"}, "'Permissive'"),
        ({"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}, "ROS_SECURITY_KEYSTORE is not set"),
        (
            {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce", "ROS_SECURITY_KEYSTORE": "/nowhere"},
            "'/nowhere'",
        ),
    ],
)
def test_security_that_is_demanded_in_part_is_refused_with_the_reason(environment, named):
    pytest.importorskip("rclpy")
    from vla_ros.nodes import security

    with pytest.raises(security.SecurityRefused, match=re.escape(named)):
        security.require(environment)


@pytest.mark.parametrize("environment", [{}, {"ROS_SECURITY_ENABLE": "false"}, {"ROS_SECURITY_ENABLE": ""}])
def test_without_a_demand_for_security_nothing_is_asked(environment):
    pytest.importorskip("rclpy")
    from vla_ros.nodes import security

    security.require(environment)
    error = RuntimeError("other")
    assert security.explain(error, environment) is error


@pytest.mark.process
@pytest.mark.parametrize("node", ["supervisor", "arm_controller"])
def test_node_that_must_be_secure_and_cannot_says_so_and_does_not_start(node, tmp_path):
    """The ROS 2 of the wheels is built without DDS security; elsewhere this keystore is empty. Neither may start."""
    pytest.importorskip("rclpy")
    (tmp_path / "enclaves").mkdir()
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": "101",
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
    }
    argv = [sys.executable, "-m", f"vla_ros.nodes.{node}", "--ros-args", "--enclave", f"/vla/{node}"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "not started: DDS security is demanded" in done.stderr


def test_nothing_is_pickled_anywhere():
    """Code that comes with data: pickle and what is built on it, and loaders that fall back to it."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    offences = []
    for path in (ROOT / "vla_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                offences += [f"{path}: {a.name}" for a in node.names if a.name.partition(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in modules:
                offences.append(f"{path}: {node.module}")
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if name.endswith("torch.load") and words.get("weights_only") != "True":
                    offences.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
                if name.endswith(("np.load", "numpy.load")) and words.get("allow_pickle", "False") != "False":
                    offences.append(f"{path}:{node.lineno}: allow_pickle")
                if re.search(r"yaml\.(load|unsafe_load|full_load)$", name):
                    offences.append(f"{path}:{node.lineno}: {name}")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("node", [*NODES, "runtime"])
def test_parameters_are_read_only_but_those_of_the_simulated_world(node):
    """The contract bounds motion and comes with the start; at run time nothing of it can be set."""
    free = {"sim": {"seed", "family", "task", "unplugged"}}
    tree = ast.parse((ROOT / "vla_ros" / "nodes" / f"{node}.py").read_text())
    writable = set()
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = ast.unparse(call.func)
        assert name != "self.declare_parameter" or node == "runtime", "only `parameter` declares: with a description"
        if name == "self.parameter":
            assert any(not isinstance(a, ast.Constant) or a.value for a in call.args[2:]), "a parameter without words"
            words = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if words.get("read_only", "True") != "True":
                writable.add(call.args[0].value)
    assert writable == free.get(node, set())
