"""`colcon build` makes a working package of the same tree that pip installs."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD_DEADLINE_S = 400.0
START_DEADLINE_S = 60.0

WHERE = """
import vla_ros.msg, vla_ros.core.contract as contract, vla_ros.paths as paths
print(vla_ros.msg.__file__, contract.__file__, paths.share_dir(), sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    if importlib.util.find_spec("colcon") is None:
        pytest.skip("colcon is not installed")
    folder = tmp_path_factory.mktemp("colcon")
    environment = os.environ | {"VENV": sys.prefix}
    command = ["bash", str(ROOT / "scripts" / "colcon_build.sh"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_DEADLINE_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "install"


def in_workspace(installed, *command, **options):
    """Run as after `source install/setup.sh`, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "AMENT_PREFIX_PATH"} | {"ROS_DOMAIN_ID": "96"}
    script = f'. "{installed}/setup.sh" && exec "$@"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", *map(str, command)],
        env=environment,
        cwd=installed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.mark.process
def test_colcon_build_puts_interfaces_code_and_files_into_one_prefix(installed):
    output, _ = in_workspace(installed, sys.executable, "-c", WHERE).communicate(timeout=START_DEADLINE_S)
    lines = output.splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{installed}/") for line in lines), output
    assert (Path(lines[2]) / "launch" / "sim.launch.py").is_file()


@pytest.mark.process
def test_node_of_a_colcon_build_starts_and_stops(installed):
    node = in_workspace(installed, sys.executable, installed / "lib" / "vla_ros" / "perception")
    watchdog = threading.Timer(START_DEADLINE_S, node.kill)  # ends the reading below
    watchdog.start()
    seen = []
    try:
        while "activate done" not in "".join(seen):
            line = node.stdout.readline()
            assert line, "ended early:\n" + "".join(seen)
            seen.append(line)
        node.send_signal(signal.SIGINT)
        output, _ = node.communicate(timeout=START_DEADLINE_S)
        assert node.returncode == 0, "".join(seen) + output
    finally:
        watchdog.cancel()
        if node.poll() is None:
            node.kill()
            node.communicate()
