"""Carries what a supervisor says and hears between two ROS domains. A process of the tests, never shipped."""

import os
import signal

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty

from vla_ros import paths
from vla_ros.msg import (
    ActionChunk,
    ArmState,
    Instruction,
    PerceptionStatus,
    PolicyStatus,
    SafeCommand,
)
from vla_ros.nodes import qos
from vla_ros.nodes.runtime import NAMESPACE

OUT = {"safe_command": SafeCommand, "instruction": Instruction, "interrupt": Empty}
BACK = {
    "joint_states": JointState,
    "action_chunk": ActionChunk,
    "policy_status": PolicyStatus,
    "arm_state": ArmState,
    "perception_status": PerceptionStatus,
}


def main():
    paths.set_ros_environment()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # leaves at once: it has nothing to stop
    contexts = [rclpy.Context(), rclpy.Context()]
    for context, domain in zip(contexts, os.environ["RELAY_DOMAINS"].split(), strict=True):
        rclpy.init(context=context, domain_id=int(domain), signal_handler_options=SignalHandlerOptions.NO)
    near, far = (rclpy.create_node("relay", namespace=NAMESPACE, context=context) for context in contexts)
    for topics, source, target in ((OUT, near, far), (BACK, far, near)):
        for topic, kind in topics.items():
            publisher = target.create_publisher(kind, topic, qos.offered(topic))
            source.create_subscription(kind, topic, publisher.publish, qos.requested(topic), raw=True)
    executors = [SingleThreadedExecutor(context=context) for context in contexts]
    for executor, node in zip(executors, (near, far), strict=True):
        executor.add_node(node)
    while True:
        for executor in executors:
            executor.spin_once(timeout_sec=0.001)


if __name__ == "__main__":
    main()
