"""What the live benchmarks of this folder share: a recorder as a process of its own, tasks one after another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveGraph, loop_report, play
from vla_ros.cli.report import CliError
from vla_ros.cli.stream import Recorder, stream_violations
from vla_ros.core import contract as contracts

READY_S = 120.0
TASK_S = 40.0


@contextlib.contextmanager
def recorder(client: GraphClient, **parameters: object) -> Iterator[int]:
    """The recorder node in the client's domain, active; its process id."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(client.domain_id), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([sys.executable, "-m", "vla_ros.nodes.recorder", "--ros-args", *words], env=environment)
    try:
        client.wait_active(("recorder",), READY_S)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20.0)


def tasks(graph: LiveGraph, listener: Recorder, n: int, seed: int) -> dict[str, Any]:
    """`n` tasks: how each ended, and the control loop and the limits over all of them."""
    client = graph.client
    before = client.wait_until(lambda: client.state, READY_S, "no state from the supervisor")
    listener.restart()
    outcomes = []
    for k in range(n):
        client.interrupt()
        text = str(client.sim_reset(seed + k)["instruction"])
        try:
            episode = play(client, text, TASK_S, check=graph.check)
        except CliError as refused:  # to rearm: on a machine that is too busy
            outcomes.append(str(refused))
            continue
        outcomes.append(episode.outcome if episode.success else f"not fulfilled: {episode.outcome} {episode.reason}")
    after = client.state
    assert after is not None
    stream, _ = listener.take()
    return {
        "outcomes": outcomes,
        "control_loop": loop_report(before, after),
        "command_violations": stream_violations(stream, contracts.load("panda")),
    }
