"""What recording costs without the middleware: serialised messages at full rates into an episode, in this process.

    python benchmarks/data/recorder_cpu.py --seconds 10 [--images png]

Two cameras 640x480 at 30 Hz, joint states at 500 Hz, commands at 100 Hz, observations. CPU time, not time on the clock:
a busy machine changes it little. Prints ms for each image and observation, and the share of one core of all threads but
the one that feeds them. What rclpy takes on top is in `recorder.py`, which needs a graph.
"""

import argparse
import dataclasses
import heapq
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rclpy.serialization import serialize_message
from talker import PICTURES, Talker

from vla_ros.core import contract as contracts
from vla_ros.data.bag_writer import Topic
from vla_ros.data.episode import Episode
from vla_ros.data.images import Coding
from vla_ros.data.recording import Recording, Stream
from vla_ros.data.session import Settings
from vla_ros.msg import CameraImage, Observation, SafeCommand
from vla_ros.nodes import conversions, qos
from vla_ros.nodes.recorded_topics import kind_name, sources

REPEAT = 60
HZ = {"image": 30.0, "joint_states": 500.0, "safe_command": 100.0, "observation": 30.0}


def said(contract):
    """Serialised messages by row of the QoS table."""
    rng, stamp = np.random.default_rng(0), conversions.to_stamp(1_700_000_000_000_000_000)
    camera = dataclasses.replace(contract.cameras[0], width_px=640, height_px=480)
    pictures = [Talker.picture(rng, camera, i) for i in range(PICTURES)]
    px, zeros = contract.cameras[0].policy_px, np.zeros(contract.n_joints)
    small = conversions.bytes_field(np.ascontiguousarray(pictures[0][:px, :px]))
    images = [CameraImage(name=c.name, stamp=stamp, height=px, width=px, data=small) for c in contract.cameras]
    command = SafeCommand(position=conversions.doubles_field(zeros), velocity=conversions.doubles_field(zeros))
    return {
        "image": [serialize_message(conversions.rgb_image(picture, "camera", stamp)) for picture in pictures],
        "joint_states": [serialize_message(conversions.joint_state(contract, zeros, zeros, 0.04, stamp))],
        "safe_command": [serialize_message(command)],
        "observation": [serialize_message(Observation(stamp=stamp, images=images))],
    }


def each_ms(change, messages):
    """CPU time of one change; the least of three runs."""
    runs = []
    for _ in range(3):
        begin_s = time.process_time()
        for k in range(REPEAT):
            change(messages[k % len(messages)])
        runs.append(time.process_time() - begin_s)
    return round(1e3 * min(runs) / REPEAT, 3)


def feed(recording, heard, messages, seconds):
    """At their rates. Returns (CPU share of the other threads, messages)."""
    due = [(0.0, k, 0) for k, source in enumerate(heard) if source.stream in HZ]
    heapq.heapify(due)
    begin_s, all_s, own_s, n = time.monotonic(), time.process_time(), time.thread_time(), 0
    while (now_s := time.monotonic() - begin_s) < seconds:
        due_s, k, i = due[0]
        if due_s > now_s:
            time.sleep(due_s - now_s)
            continue
        content = messages[heard[k].stream]
        recording.offer(k, content[i % len(content)], time.time_ns())
        heapq.heapreplace(due, (due_s + 1.0 / HZ[heard[k].stream], k, i + 1))
        n += 1
    spent_s = time.process_time() - all_s - (time.thread_time() - own_s)
    return spent_s / (time.monotonic() - begin_s), n


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--images", default="jpeg 90")
    options = parser.parse_args()
    contract, coding = contracts.load("panda"), Coding.parse(options.images)
    heard, messages = sources(contract, coding), said(contract)
    change = {source.stream: source.change for source in heard if source.change}
    facts = {f"{name}_ms": each_ms(change[name], messages[name]) for name in ("image", "observation")}
    topics = [Topic(f"/vla/{s.name}{s.suffix}", kind_name(s.stored or s.kind), qos.described(s.stream)) for s in heard]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(
            [Stream(topic, source.change) for topic, source in zip(topics, heard, strict=True)],
            Settings(folder=Path(folder), free_min_bytes=1, ring_s=0.0),
            time.time_ns, failed.append,
        )  # fmt: skip
        recording.begin()
        recording.start("cpu", Episode).result(10.0)
        share, n = feed(recording, heard, messages, options.seconds)
        kept = recording.keep().result(30.0)
        recording.end()
    facts |= {"cpu_percent_of_one_core": round(100.0 * share, 1), "offered": n, "written": kept.messages,
              "drops": kept.drops, "load": os.getloadavg()[0], "failed": [repr(error) for error in failed]}  # fmt: skip
    print(json.dumps(facts, indent=2))
    return int(bool(failed or kept.drops or kept.messages != n))


if __name__ == "__main__":
    raise SystemExit(main())
