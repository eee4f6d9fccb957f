"""The recorder under load, and how fast MCAP is written and read here, beside the rosbags library in the same run.

    python benchmarks/data/recorder.py --seconds 300 [--images png]

Two cameras 640x480 at 30 Hz, joint states at 500 Hz and every control topic, from another process. Bar: nothing lost,
at most 35 % of one core.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.data.bag_reader import Bag
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.episode import Episode
from vla_ros.data.ros_schema import schema

TALKER = Path(__file__).resolve().parent / "talker.py"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
NUMBERED = {"image_raw/compressed": "header", "joint_states": "header", "safe_command": "sequence"}
READY_S = 120.0


def vga_contract(folder):
    """The panda's contract with cameras of 640x480 at 30 Hz."""
    text = paths.robot_contract("panda").read_text()
    text = text.replace("width_px: 224, height_px: 224, rate_hz: 15.0", "width_px: 640, height_px: 480, rate_hz: 30.0")
    path = folder / "vga.yaml"
    path.write_text(text)
    assert contracts.load(path).cameras[0].width_px == 640
    return path


def cpu_s(pid):
    """User and system time of a process so far [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def missing(bag):
    """Numbers that are absent between the first and the last of each numbered topic."""
    found = {}
    for name in bag.topics:
        where = next((place for end, place in NUMBERED.items() if name.endswith(end)), None)
        if where is None or not bag.topics[name].count:
            continue
        messages = (bag.decode(message) for message in bag.messages([name]))
        numbers = [int(m.header.frame_id) if where == "header" else int(m.sequence) for m in messages]
        found[name] = numbers[-1] - numbers[0] + 1 - len(numbers)
    return found


def live(folder, seconds, images):
    from vla_ros.cli.client import GraphClient
    from vla_ros.cli.live import free_domain
    from vla_ros.cli.record import ask

    domain, contract = free_domain(), vga_contract(folder)
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    given = {"contract": contract, "folder": folder / "episodes", "images": f"'{images}'", "ring_s": 0.0}
    words = [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
    recorder = subprocess.Popen([sys.executable, "-m", "vla_ros.nodes.recorder", "--ros-args", *words], env=environment)
    talker = subprocess.Popen(
        [sys.executable, str(TALKER), "--contract", str(contract)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        with GraphClient(domain_id=domain) as client:
            client.wait_active(("recorder",), READY_S)
            talker.stdout.readline()  # everybody is heard
            ask(client, "START", text="benchmark", name="benchmark")
            begin_s, spent_s = time.monotonic(), cpu_s(recorder.pid)
            client.wait_until(lambda: False, seconds)
            share = (cpu_s(recorder.pid) - spent_s) / (time.monotonic() - begin_s)
            facts = ask(client, "KEEP")
        facts["cpu_percent_of_one_core"] = round(100.0 * share, 1)
    finally:
        for process in (talker, recorder):
            process.send_signal(signal.SIGINT)
            process.wait(20.0)
    bag = Bag.open(facts["episode"])
    facts |= {
        "missing": missing(bag),
        "rate_hz": {name: round(t.count / bag.duration_s, 1) for name, t in bag.topics.items() if t.count},
    }
    return facts, bag


def timed(work):
    begin_s, spent_s = time.monotonic(), time.process_time()
    result = work()
    return result, time.monotonic() - begin_s, time.process_time() - spent_s


def throughput(bag, folder):
    """MB/s and messages/s of CPU time, of the recorded messages, without fsync on either side."""
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    messages = list(bag.messages())
    size_mb = sum(len(m.data) for m in messages) / 1e6
    topics = [Topic(t.name, t.kind) for t in bag.topics.values()]
    index = {topic.name: i for i, topic in enumerate(topics)}
    store = get_typestore(Stores.ROS2_KILTED)
    for topic in topics:
        new = get_types_from_msg(schema(topic.kind).text, topic.kind)
        store.register({name: fields for name, fields in new.items() if name not in store.types})

    def ours(compression):
        writer = BagWriter(folder, f"ours_{compression}", topics, Episode(), compression)
        for m in messages:
            writer.write(index[m.topic], m.data, m.log_ns)
        writer.close(Episode())
        return writer.keep(Episode())

    def theirs():
        path = folder / "rosbags"
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            links = [writer.add_connection(t.name, t.kind, typestore=store) for t in topics]
            for m in messages:
                writer.write(links[index[m.topic]], m.log_ns, m.data)
        return path

    def read_ours(path):
        return sum(1 for _ in Bag.open(path).messages())

    def read_theirs(path):
        with AnyReader([path]) as reader:
            return sum(1 for _ in reader.messages())

    rows = {}

    def row(name, work):
        result, wall_s, spent_s = timed(work)
        rows[name] = {
            "cpu_s": round(spent_s, 3), "wall_s": round(wall_s, 3), "mb_per_cpu_s": round(size_mb / spent_s),
            "messages_per_cpu_s": round(len(messages) / spent_s),
        }  # fmt: skip
        return result

    mine = row("write, vla_ros", lambda: ours("none"))
    zstd = row("write, vla_ros, zstd", lambda: ours("zstd"))
    other = row("write, rosbags", theirs)
    for name, path in (("vla_ros bag", mine), ("vla_ros bag, zstd", zstd), ("rosbags bag", other)):
        counts = {
            row(f"read {name} by vla_ros", lambda path=path: read_ours(path)),
            row(f"read {name} by rosbags", lambda path=path: read_theirs(path)),
        }
        assert counts == {len(messages)}, counts
    sizes = {path.name: round(sum(f.stat().st_size for f in path.iterdir()) / 1e6, 2) for path in (mine, zstd, other)}
    return {"messages": len(messages), "size_mb": round(size_mb, 2), "files_mb": sizes, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--images", default="jpeg 90")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vla_recorder_"))
    try:
        facts, bag = live(folder, options.seconds, options.images)
        facts["throughput"] = throughput(bag, folder)
        print(json.dumps(facts, indent=2))
        kept = facts["drops"] == 0 and not any(facts["missing"].values())
        return 0 if kept and facts["cpu_percent_of_one_core"] <= 35.0 else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
