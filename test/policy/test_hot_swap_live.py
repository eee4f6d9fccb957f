"""A policy node that runs takes what was installed meanwhile, between two instructions, and goes back after a rollback.

Its own process, real topics, two policies that differ in their weights; no arm: nothing here must be fast.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("torch")
pytest.importorskip("onnx")

from rich.console import Console

from vla_ros import paths
from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import free_domain
from vla_ros.msg import Instruction, PolicyStatus
from vla_ros.nodes import qos
from vla_ros.policy.install import Installed, Smoke
from vla_ros.policy.manifest import FILE_NAME

pytestmark = pytest.mark.process
WAIT_S = 90.0  # a machine that has too much to do
STAYS_S = 2.0  # four times the period of the status


def gated(source, folder):
    """A copy with the report of a quantization gate that passed."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / FILE_NAME).read_text())
    sha256 = manifest["files"][manifest["graph"]]["sha256"]
    manifest["precision"]["gate"] = {"passed": True, "sha256": sha256, "criteria": []}
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    return folder, sha256


@pytest.fixture
def policies(policy_folder, make_trainer, demonstrations, contract, tmp_path):
    """Two policy folders, each with the hash that the node will say."""
    from vla_ros.policy.export import export
    from vla_ros.training.train import run

    run(make_trainer(tmp_path / "run", learning_rate=3e-3), None, Console(quiet=True))
    export(tmp_path / "run", tmp_path / "other", [demonstrations], contract, "other")
    return [gated(policy_folder, tmp_path / "first"), gated(tmp_path / "other", tmp_path / "second")]


class Listener:
    """The graph around the node: says instructions, hears what the policy says of itself."""

    def __init__(self, client):
        self.client, self.statuses = client, []
        self._say = client.node.create_publisher(Instruction, "instruction", qos.offered("instruction"))
        client.subscribe(PolicyStatus, "policy_status", "policy_status", self.statuses.append)

    def instruct(self, number, text):
        self._say.publish(Instruction(instruction_id=number, text=text))

    def until(self, holds, process):
        def reached():
            assert process.poll() is None, f"the policy node ended with {process.returncode}"
            return self.statuses and holds(self.statuses[-1])

        assert self.client.wait_until(reached, WAIT_S), self.statuses[-1:]


def test_running_node_changes_over_between_instructions_and_back(policies, contract, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    paths.set_ros_environment()
    installed = Installed(paths.installed_policies(), contract)
    (first, first_hash), (second, second_hash) = policies
    assert first_hash != second_hash
    installed.install(first, lambda folder: Smoke(6, 6, 0))
    domain = free_domain()
    argv = [
        sys.executable,
        "-m",
        "vla_ros.nodes.policy",
        "--ros-args",
        "-r",
        "__ns:=/vla",
        "-p",
        "policy_path:=installed",
    ]
    process = subprocess.Popen(argv, env={**os.environ, "ROS_DOMAIN_ID": str(domain)})
    try:
        with GraphClient(domain_id=domain) as client:
            graph = Listener(client)
            graph.until(lambda status: status.ready and status.checkpoint_hash == first_hash, process)
            deadline_s = time.monotonic() + WAIT_S
            while not any(s.instruction_id == 1 and s.verdict == PolicyStatus.VERDICT_ACCEPTED for s in graph.statuses):
                assert time.monotonic() < deadline_s, graph.statuses[-1]
                graph.instruct(1, "pick up the red cube")
                client.wait_until(lambda: False, 0.5)
            installed.install(second, lambda folder: Smoke(6, 6, 0))
            heard = len(graph.statuses)
            client.wait_until(lambda: False, STAYS_S)
            during = {status.checkpoint_hash for status in graph.statuses[heard:]}
            assert during == {first_hash}, "an instruction is worked on by the policy that accepted it"
            graph.instruct(0, "")
            graph.until(lambda status: status.checkpoint_hash == second_hash, process)
            graph.instruct(2, "pick up the red cube")
            graph.until(lambda status: status.instruction_id == 2, process)
            graph.instruct(0, "")
            installed.rollback()
            graph.until(lambda status: status.ready and status.checkpoint_hash == first_hash, process)
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30.0)
