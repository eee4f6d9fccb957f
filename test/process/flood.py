"""Publishes on every input that a stranger may reach, as fast as it can. A process of the tests, never shipped."""

import rclpy
from std_msgs.msg import Bool, Empty

from vla_ros import paths
from vla_ros.msg import ActionChunk, PolicyStatus
from vla_ros.nodes import qos
from vla_ros.nodes.runtime import NAMESPACE

INPUTS = (
    (ActionChunk, "action_chunk"),
    (PolicyStatus, "policy_status"),
    (Empty, "operator_heartbeat"),
    (Bool, "reduced_speed"),
)


def main():
    paths.set_ros_environment()
    rclpy.init()
    node = rclpy.create_node("stranger", namespace=NAMESPACE)
    pairs = [(node.create_publisher(kind, stream, qos.offered(stream)), kind) for kind, stream in INPUTS]
    while not all(publisher.get_subscription_count() for publisher, _ in pairs):
        rclpy.spin_once(node, timeout_sec=0.05)
    print("flooding", flush=True)
    k = 0
    while True:
        k += 1
        for publisher, kind in pairs:
            strange = {"rows": 4, "cols": 7, "data": [0.0] * 28, "sequence": k} if kind is ActionChunk else {}
            publisher.publish(kind(**strange))


if __name__ == "__main__":
    main()
