"""Says what a graph says, at its rates, without an arm: two cameras, joint states, control topics. For the recorder.

    python benchmarks/data/talker.py --contract FILE --seconds 10

Every message carries its number: `frame_id` of images and joint states, `sequence` of commands.
"""

import argparse
import heapq
import json
import signal
import sys
import time

import numpy as np

from vla_ros import paths

paths.set_ros_environment()

import rclpy  # noqa: E402  after the environment
from rclpy.signals import SignalHandlerOptions  # noqa: E402
from rclpy.utilities import remove_ros_args  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from vla_ros.core import contract as contracts  # noqa: E402
from vla_ros.msg import (  # noqa: E402
    ActionChunk,
    ArmState,
    CameraImage,
    Instruction,
    Observation,
    PerceptionStatus,
    PolicyStatus,
    SafeCommand,
    SafetyEvent,
    SafetyState,
)
from vla_ros.nodes import conversions, qos  # noqa: E402

PICTURES = 16  # different ones, in turn: an encoder must not profit from a still image


class Talker:
    def __init__(self, contract, camera_hz, joints_hz):
        self.node = rclpy.create_node("talker", namespace="vla")
        self.contract, self.said = contract, {}
        n = contract.n_joints
        rng = np.random.default_rng(0)
        self.q = contract.poses.ready_rad
        self.zeros = np.zeros(n)
        self.pictures = [self.picture(rng, contract.cameras[0], i) for i in range(PICTURES)]
        px = contract.cameras[0].policy_px
        self.small = np.ascontiguousarray(self.pictures[0][:px, :px])
        a = conversions.doubles_field(self.q)
        z = conversions.doubles_field(self.zeros)
        command = {"position": a, "velocity": z, "writer_id": 1}
        chunk = conversions.chunk_message(
            np.zeros((16, 7)), stamp_ns=1, writer_id=1, instruction_id=1, sequence=1, contract_hash=contract.hash,
            space=contract.action.space, dt_s=0.05, inference_s=0.01, confidence=1.0, done_probability=0.0,
        )  # fmt: skip
        self.periods = []
        for camera in contract.cameras:
            self.add(camera.topic, Image, "image", camera_hz, self.image)
        self.add(contract.arm.joint_state_topic, JointState, "joint_states", joints_hz, self.joints)
        self.add("observation", Observation, "observation", camera_hz, self.observation)
        self.add("action_chunk", ActionChunk, "action_chunk", 7.5, lambda i, stamp: numbered(chunk, i, stamp))
        same = SafeCommand(**command)
        self.add("safe_command", SafeCommand, "safe_command", 100.0, lambda i, stamp: numbered(same, i, stamp))
        for name, kind, hz in (
            ("safety_state", SafetyState, 10.0), ("arm_state", ArmState, 10.0), ("policy_status", PolicyStatus, 2.0),
            ("perception_status", PerceptionStatus, 20.0), ("safety_event", SafetyEvent, 1.0),
        ):  # fmt: skip
            self.add(name, kind, name, hz, lambda i, stamp, kind=kind: kind(stamp=stamp))
        self.add(
            "instruction", Instruction, "instruction", 0.2, lambda i, stamp: Instruction(instruction_id=i, text="go")
        )

    def add(self, topic, kind, stream, hz, make):
        self.said[topic] = 0
        self.periods.append((topic, self.node.create_publisher(kind, topic, qos.offered(stream)), 1.0 / hz, make))

    @staticmethod
    def picture(rng, camera, i):
        """Smooth shapes and a little noise: about as hard to compress as a camera's picture of a table."""
        y, x = np.mgrid[: camera.height_px, : camera.width_px]
        base = 90.0 + 60.0 * np.sin(x / 37.0 + i) * np.cos(y / 53.0) + (((x // 64) + (y // 64)) % 2) * 40.0
        rgb = base[..., None] + np.array([0.0, 12.0, -20.0]) + rng.normal(0.0, 3.0, (*base.shape, 3))
        return np.clip(rgb, 0, 255).astype(np.uint8)

    def image(self, i, stamp):
        return conversions.rgb_image(self.pictures[i % PICTURES], str(i), stamp)

    def joints(self, i, stamp):
        message = conversions.joint_state(self.contract, self.q, self.zeros, 0.04, stamp)
        message.header.frame_id = str(i)
        return message

    def observation(self, i, stamp):
        px = self.small.shape[0]
        images = [
            CameraImage(name=c.name, stamp=stamp, height=px, width=px, data=conversions.bytes_field(self.small))
            for c in self.contract.cameras
        ]
        return Observation(stamp=stamp, sequence=i, images=images, position=conversions.doubles_field(self.q))

    def heard(self):
        return all(publisher.get_subscription_count() for _, publisher, _, _ in self.periods)

    def run(self, stopped, seconds):
        """In absolute time: what is late is made up for, so that the rate holds."""
        begin_s = time.monotonic()
        due = [(begin_s + 0.01 * k, k) for k in range(len(self.periods))]
        heapq.heapify(due)
        while not stopped and time.monotonic() - begin_s < seconds:
            due_s, k = due[0]
            time.sleep(max(due_s - time.monotonic(), 0.0))
            topic, publisher, period_s, make = self.periods[k]
            self.said[topic] += 1
            publisher.publish(make(self.said[topic], self.node.get_clock().now().to_msg()))
            heapq.heapreplace(due, (due_s + period_s, k))


def numbered(message, i, stamp):
    message.sequence, message.stamp = i, stamp
    return message


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contract", default="panda")
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--joints-hz", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args(remove_ros_args(sys.argv)[1:])
    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: stopped.append(n))
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    talker = Talker(contracts.load(options.contract), options.camera_hz, options.joints_hz)
    while not (stopped or talker.heard()):
        time.sleep(0.05)
    print("heard", flush=True)
    talker.run(stopped, options.seconds)
    print(json.dumps(talker.said), flush=True)
    talker.node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
