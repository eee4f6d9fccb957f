"""The disk of the recorder fills up while the arm works: what becomes of the bag, of the operator and of the motion.

    sudo .venv/bin/python benchmarks/data/full_disk.py --tasks 4

A file system of 14 MB is mounted (that needs root), the recorder writes lossless images into it until it is full. The
same tasks are done without a recorder, for the motion to be compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import graph as parts
from rosbags.highlevel import AnyReader

from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveGraph
from vla_ros.cli.record import ask
from vla_ros.cli.stream import Recorder

SIZE_MB = 14  # of which 8 are the recorder's reserve; the rest is full after about two tasks
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


def record_until_full(client: GraphClient, folder: Path, do_tasks: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with parts.recorder(client, folder=folder, images="png", ring_s=0.0, free_min_mb=0, execute=False):
        ask(client, "START", name="full")
        facts = {"motion": do_tasks()}
        status = ask(client, "STATUS")
        facts["state"], facts["operator_reads"] = status["state"], status["reason"]
        client.wait_until(lambda: client.health["recorder"].values.get("closed_early") == "1", TOLD_S)
        told = client.health["recorder"].values
        facts["diagnostics"] = {key: told.get(key, "") for key in ("closed_early", "note", "drops")}
        facts["kept"] = ask(client, "KEEP")
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
        do_tasks = functools.partial(parts.tasks, graph, Recorder(client), a.tasks, a.seed)
        facts = {"without_recorder": do_tasks(), "disk_full": record_until_full(client, folder, do_tasks)}
    print(json.dumps({**facts, "took_s": round(time.monotonic() - begin_s, 1)}, indent=1))
    full = facts["disk_full"]
    whole = 0 < full["messages_read_by_rosbags"] == full["kept"]["messages"]
    told = "full" in full["operator_reads"] and full["diagnostics"]["closed_early"] == "1"
    sys.exit(0 if whole and told and not full["motion"]["command_violations"] else 1)


if __name__ == "__main__":
    main()
