"""Rules that a machine can check: who may import what, no wall clock, no swallowed errors, consistent metadata."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vla_ros"
CODE = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "test").rglob("*.py"))

# top-level module -> folders below vla_ros/ that may import it
ONLY_IN = {
    "rclpy": {"nodes", "cli", "console"},
    "torch": {"policy", "training"},
    "mujoco": {"sim"},
}
# What a ROS message import means: the generated packages need rclpy's libraries.
ROS_PACKAGES = {"std_msgs", "std_srvs", "sensor_msgs", "trajectory_msgs", "diagnostic_msgs", "lifecycle_msgs"}
CORE_MAY_IMPORT = {"numpy", "pinocchio", "ruckig", "yaml", "vla_ros"} | set(sys.stdlib_module_names)
OUTSIDE_CORE = {"nodes", "cli", "console", "policy", "training", "sim", "arm", "data"}  # above core in the import order
BRAKES = ("supervisor", "arm_controller")  # processes that must work with the learned part absent


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree):
    """(line, dotted name) of every import, wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the layer"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def layer(path):
    """`core` for vla_ros/core/x.py, empty for vla_ros/x.py."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_there_is_code_to_check():
    assert len(CODE) > 10 and len(TESTS) > 2


@pytest.mark.unit
@pytest.mark.parametrize("module", ONLY_IN)
def test_module_is_imported_only_where_it_may_be(module):
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in CODE
        if layer(path) not in ONLY_IN[module]
        for line, name in imports(parse(path))
        if name.partition(".")[0] == module
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.unit
def test_generated_messages_are_used_only_by_the_shells():
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in CODE
        if layer(path) not in ONLY_IN["rclpy"]
        for line, name in imports(parse(path))
        if name.partition(".")[0] in ROS_PACKAGES or re.match(r"vla_ros\.(msg|srv|action)\b", name)
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.unit
def test_core_imports_numpy_pinocchio_and_ruckig_at_most_and_nothing_above_it():
    offences = []
    for path in CODE:
        if layer(path) != "core":
            continue
        for line, name in imports(parse(path)):
            top, _, rest = name.partition(".")
            if top not in CORE_MAY_IMPORT or (top == "vla_ros" and rest.partition(".")[0] in OUTSIDE_CORE):
                offences.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not offences, "\n".join(offences)


@pytest.mark.unit
def test_running_graph_cannot_reach_the_privileged_expert():
    """The expert reads the world's state; only what makes or scores demonstrations may know it."""
    allowed = {"sim", "training"}
    offences = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in CODE
        if layer(path) not in allowed
        for line, name in imports(parse(path))
        if name.startswith("vla_ros.sim.expert")
    ]
    assert not offences, "\n".join(offences)


def calls(tree):
    """(line, dotted name, node) of every call whose target is a plain name or attribute chain."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


@pytest.mark.unit
def test_wall_clock_is_read_nowhere():
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
    offences = []
    for path in CODE:
        tree = parse(path)
        offences += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name, _ in calls(tree) if name in wall]
        offences += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in imports(tree) if name in wall]
    assert not offences, "\n".join(offences)


@pytest.mark.unit
def test_pure_code_reads_no_clock_at_all():
    """Time is an argument below the shell."""
    pure = {"core", "arm"}
    offences = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in CODE
        if layer(path) in pure
        for line, name, _ in calls(parse(path))
        if re.fullmatch(r"time\.(monotonic|perf_counter|process_time|sleep)(_ns)?", name)
    ]
    assert not offences, "\n".join(offences)


def is_nothing(body):
    return all(isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in body)


@pytest.mark.unit
def test_no_error_is_swallowed():
    """`except: pass`, of whatever type. Where an error is expected, contextlib.suppress names it."""
    offences = []
    for path in CODE + TESTS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or is_nothing(node.body)):
                offences.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node).splitlines()[0]}")
    assert not offences, "\n".join(offences)


@pytest.mark.unit
def test_tests_poll_with_a_deadline_and_never_just_sleep():
    """A sleep in a test stands inside a `while` loop (polling) or a nested function (a slow thing under test)."""
    offences = []
    for path in (p for p in TESTS if p.name.startswith(("test_", "conftest"))):  # a fake may be slow on purpose
        tree = parse(path)
        polled = {id(inner) for loop in ast.walk(tree) if isinstance(loop, ast.While) for inner in ast.walk(loop)}
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        nested = [
            f for outer in functions for f in ast.walk(outer) if isinstance(f, ast.FunctionDef) and f is not outer
        ]
        polled |= {id(inner) for function in nested for inner in ast.walk(function)}
        for line, name, node in calls(tree):
            if name in ("time.sleep", "sleep", "asyncio.sleep") and id(node) not in polled:
                offences.append(f"{path.relative_to(ROOT)}:{line}")
    assert not offences, "\n".join(offences)


WITHOUT_TORCH = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "onnxruntime", "mujoco", "onnx"):
            raise ModuleNotFoundError(f"{name} is absent in this test", name=name)
sys.meta_path.insert(0, Absent())
import vla_ros.nodes.%s as node
assert callable(node.main)
assert not {"torch", "onnxruntime", "mujoco"} & set(sys.modules)
"""


@pytest.mark.unit
@pytest.mark.parametrize("node", BRAKES)
def test_what_brakes_starts_with_torch_absent(node):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH % node], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------- metadata


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def package_xml():
    from xml.etree import ElementTree

    return ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.mark.unit
def test_name_version_and_licence_are_the_same_everywhere():
    import vla_ros

    xml, toml = package_xml(), project()
    assert xml.findtext("name") == toml["name"] == "vla_ros"
    assert xml.findtext("version") == toml["version"] == vla_ros.__version__
    assert toml["version"] in (ROOT / "CHANGELOG.rst").read_text()
    assert xml.findtext("license") == toml["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert xml.findtext("export/build_type") == "ament_cmake"


@pytest.mark.unit
def test_every_interface_is_built_and_documented():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    files = sorted(p for folder in ("msg", "srv", "action") for p in (ROOT / folder).iterdir())
    assert files
    assert sorted(re.findall(r"^  ((?:msg|srv|action)/\w+\.\w+)$", cmake, re.MULTILINE)) == sorted(
        f"{p.parent.name}/{p.name}" for p in files
    )
    for path in files:
        for line in path.read_text().splitlines():
            declaration = line.partition("#")[0].strip()
            assert not re.search(r"\bstring\b(?!<=)|\[\]", declaration), f"{path.name}: {line!r} is not bounded"


@pytest.mark.unit
def test_every_node_has_an_executable_that_is_installed():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    nodes = [p.stem for p in (PACKAGE / "nodes").glob("*.py") if re.search(r"^def main\(", p.read_text(), re.MULTILINE)]
    assert set(nodes) >= {"perception", "policy", "supervisor", "arm_controller", "sim"}
    for name in nodes:
        script = ROOT / "scripts" / name
        assert os.access(script, os.X_OK), f"{script} is not executable"
        assert f"from vla_ros.nodes.{name} import main" in script.read_text()
        assert f"scripts/{name}" in cmake


def key(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


@pytest.mark.unit
def test_every_requirement_is_pinned_and_the_demo_does_not_need_torch():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[^=]+$", pin.partition(" ;")[0]) for pin in pins)
    toml = project()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    extras = [r for extra in toml["optional-dependencies"].values() for r in extra]
    wanted = {key(r) for r in build + toml["dependencies"] + extras}
    assert wanted <= {key(pin) for pin in pins}
    assert not {"torch", "transformers", "onnx"} & {key(r) for r in toml["dependencies"]}


@pytest.mark.unit
def test_package_xml_names_every_ros_package_that_the_code_imports():
    declared = {e.text for e in package_xml() if e.tag.endswith("depend")}
    used = {name.partition(".")[0] for path in CODE for _, name in imports(parse(path))}
    ros = {name for name in used if re.fullmatch(r"rclpy|\w+_msgs|std_srvs|builtin_interfaces", name)}
    assert ros <= declared, f"missing in package.xml: {sorted(ros - declared)}"


@pytest.mark.unit
def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:  # an unpacked source distribution
        names = [str(p.relative_to(ROOT)) for p in CODE + TESTS]
    else:
        names = tracked.stdout.splitlines()
    machine = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/\w")
    offences = []
    for name in names:
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".rst", ".toml", ".yaml", ".txt", ".sh", ".json", ".xml", ".cfg")
            and path.is_file()
        ):
            offences += [f"{name}: {hit[0]}" for hit in machine.finditer(path.read_text(encoding="utf-8"))]
    assert not offences, "\n".join(offences)
