"""The graph of `vla launch sim`: everything active, and after SIGINT nothing left."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

READY_S = 90.0
GONE_S = 5.0
NODES = ("arm_controller", "supervisor", "perception", "policy", "sim")
TORCH_FREE = ("arm_controller", "supervisor", "perception", "policy")
MUJOCO_FREE = ("arm_controller", "supervisor", "perception", "policy")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """`vla launch sim` as a user starts it, in a private domain, every node active."""
    pytest.importorskip("rclpy")
    from vla_ros.cli.client import GraphClient
    from vla_ros.cli.live import free_domain

    domain_id = free_domain()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    log = tmp_path_factory.mktemp("launch") / "launch.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vla_ros.cli.main", "launch", "sim", "seed:=5"],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain_id)},
            stdout=file,
            stderr=file,
        )
    client = GraphClient(domain_id=domain_id)

    def check():
        assert process.poll() is None, log.read_text(errors="replace")

    try:
        client.wait_active(NODES, READY_S, check=check)
        client.wait_until(lambda: set(NODES) <= set(client.health), 10.0, "diagnostics of every node")
        yield process, client
    finally:
        client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # SIGKILL would leave its nodes behind
            process.wait(timeout=30.0)


def pids(client):
    return {name: int(client.health[name].values["pid"]) for name in NODES}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_of_the_arm_hold_neither_torch_nor_the_simulator(launched):
    _, client = launched
    for name, pid in pids(client).items():
        maps = Path(f"/proc/{pid}/maps").read_text()
        if name in TORCH_FREE:
            assert not re.search(r"libtorch", maps), name
        if name in MUJOCO_FREE:
            assert not re.search(r"libmujoco|_sentencepiece|libEGL", maps), name


def test_status_says_that_every_node_is_active(launched):
    _, client = launched
    environment = {**os.environ, "ROS_DOMAIN_ID": str(client.domain_id)}
    argv = [sys.executable, "-m", "vla_ros.cli.main", "status", "--json"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # one object
    assert '"supervisor": "active"' in done.stdout


def test_no_death_of_a_node_can_stall_what_brakes_the_arm(launched):
    """Ports of shared memory have locks in them, and a process that is killed keeps the one that it holds."""
    from vla_ros.cli.launch_runner import mapped_segments

    _, client = launched
    mapped = {name: mapped_segments(pid) for name, pid in pids(client).items()}
    assert {name for name, segments in mapped.items() if segments} == {"sim", "perception"}


def test_after_sigint_every_process_is_gone_within_5_s_and_no_shared_memory_is_left(launched):
    from vla_ros.cli.launch_runner import SHM, mapped_segments

    process, client = launched
    ours = pids(client)
    segments = set().union(*(mapped_segments(pid) for pid in ours.values()))
    own = {name for name in segments if re.fullmatch(r"fastdds_[0-9a-f]{16}", name)}  # ports are shared with others
    assert own
    process.send_signal(signal.SIGINT)
    client.wait_until(lambda: not any(alive(pid) for pid in ours.values()), GONE_S, "nodes outlive SIGINT")
    process.wait(timeout=GONE_S)
    assert process.returncode == 0
    client_segments = mapped_segments(os.getpid())
    left = {name for name in own - client_segments if (SHM / name).exists()}
    assert not left
