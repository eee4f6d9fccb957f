"""The disk of the recorder fills up while the arm works: what becomes of the bag, of the operator and of the motion.

    sudo .venv/bin/python benchmarks/data/full_disk.py --tasks 4

A file system of 14 MB is mounted (that needs root), the recorder writes lossless images into it until it is full. The
same tasks are done with the recorder absent, for the motion to be compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader

from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveGraph, loop_report, play
from vla_ros.cli.record import ask
from vla_ros.cli.stream import Recorder, stream_violations
from vla_ros.core import contract as contracts

SIZE_MB = 14  # of which 8 are the recorder's reserve; the rest is full after about two tasks
READY_S = 90.0
TASK_S = 40.0
TOLD_S = 5.0  # diagnostics come once a second


@contextlib.contextmanager
def small_disk(size_mb: int) -> Iterator[Path]:
    """A tmpfs of its own. Raises `PermissionError` where nothing may be mounted."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def tasks(client: GraphClient, graph: LiveGraph, listener: Recorder, n: int, seed: int) -> dict[str, Any]:
    """`n` tasks one after the other, over what they have in common: success, late ticks, limits, stops."""
    listener.restart()
    before, outcomes = client.state, []
    assert before is not None
    for k in range(n):
        client.interrupt()
        text = str(client.sim_reset(seed + k)["instruction"])
        episode = play(client, text, TASK_S, check=graph.check)
        outcomes.append(episode.outcome if episode.success else f"not fulfilled: {episode.outcome} {episode.reason}")
    after = client.state
    assert after is not None
    stream, _ = listener.take()
    return {
        "outcomes": outcomes,
        "control_loop": loop_report(before, after),
        "command_violations": stream_violations(stream, contracts.load("panda")),
    }


def record_until_full(graph: LiveGraph, folder: Path, do_tasks: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    client = graph.client
    environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.domain_id), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    given = {"folder": folder, "images": "png", "ring_s": 0.0, "free_min_mb": 0, "execute": False}
    words = [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([sys.executable, "-m", "vla_ros.nodes.recorder", "--ros-args", *words], env=environment)
    try:
        client.wait_active(("recorder",), READY_S)
        ask(client, "START", name="full")
        facts = {"motion": do_tasks()}
        status = ask(client, "STATUS")
        facts["state"], facts["operator_reads"] = status["state"], status["reason"]
        client.wait_until(lambda: client.health["recorder"].values.get("closed_early") == "1", TOLD_S)
        facts["diagnostics"] = {
            key: client.health["recorder"].values.get(key, "") for key in ("closed_early", "note", "drops")
        }
        facts["kept"] = ask(client, "KEEP")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20.0)
    with AnyReader([folder / "full"]) as reader:  # not ours
        facts["messages_read_by_rosbags"] = sum(1 for _ in reader.messages())
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=700)
    a = parser.parse_args()
    begin_s = time.monotonic()
    with small_disk(SIZE_MB) as folder, LiveGraph({"seed": str(a.seed)}) as graph:
        client = graph.start()
        client.wait_until(lambda: client.state, READY_S, "no state from the supervisor")
        do_tasks = functools.partial(tasks, client, graph, Recorder(client), a.tasks, a.seed)
        facts = {"without_recorder": do_tasks(), "disk_full": record_until_full(graph, folder, do_tasks)}
    print(json.dumps({**facts, "took_s": round(time.monotonic() - begin_s, 1)}, indent=1))
    full = facts["disk_full"]
    whole = 0 < full["messages_read_by_rosbags"] == full["kept"]["messages"]
    told = "full" in full["operator_reads"] and full["diagnostics"]["closed_early"] == "1"
    sys.exit(0 if whole and told and not full["motion"]["command_violations"] else 1)


if __name__ == "__main__":
    main()
