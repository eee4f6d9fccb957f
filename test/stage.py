"""What stands in for the graph around `vla teleop`: no arm, nothing that must be fast."""

import numpy as np
import rclpy
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger

from vla_ros.core import contract as contracts
from vla_ros.msg import ActionChunk, SafetyState
from vla_ros.nodes import conversions, qos
from vla_ros.srv import Instruct, Record

INSTRUCTION_ID = 5  # of every instruction


class Stage:
    """An arm that stands, a supervisor and a recorder that give everybody what they ask for.

    `state` is said by the supervisor. `obeys`: instructions and stops change it; otherwise they are only answered."""

    def __init__(self, obeys, context=None):
        self.obeys = obeys
        self.contract = contracts.load("panda")
        self.node = rclpy.create_node("stage", namespace="vla", context=context)
        made = {
            name: self.node.create_publisher(kind, name, qos.offered(name))
            for name, kind in (
                ("joint_states", JointState), ("safety_state", SafetyState), ("teleoperated", Bool), ("joy", Joy),
            )
        }  # fmt: skip
        self.publish = {name: publisher.publish for name, publisher in made.items()}
        self.chunks, self.interrupts, self.asked, self.recorder_asked = [], 0, [], []
        self.state, self.driven = SafetyState(phase="idle"), False
        self.node.create_subscription(ActionChunk, "teleop_chunk", self.chunks.append, qos.requested("action_chunk"))
        self.node.create_subscription(Empty, "interrupt", self._stop, qos.requested("interrupt"))
        self.node.create_service(SetBool, "teleoperate", self._teleoperate)
        self.node.create_service(Instruct, "instruct", self._instruct)
        self.node.create_service(Record, "record", self._record)
        for name in ("rearm", "home"):
            self.node.create_service(Trigger, name, lambda request, response: response)

    def say(self):
        """Joint states, and what the supervisor says."""
        c = self.contract
        now = conversions.to_stamp(self.node.get_clock().now().nanoseconds)
        self.publish["joint_states"](
            conversions.joint_state(c, c.poses.ready_rad, np.zeros(c.n_joints), c.gripper.open_m, now)
        )
        self.publish["safety_state"](self.state)
        self.publish["teleoperated"](Bool(data=self.driven))

    def _stop(self, message):
        self.interrupts += 1
        if self.obeys:
            self.state = SafetyState(severity=3, reason="interrupt", latched=True, phase="stopped")

    def _teleoperate(self, request, response):
        self.asked.append(request.data)
        self.driven, response.success = request.data, True
        return response

    def _instruct(self, request, response):
        self.asked.append(request.text)
        response.accepted, response.instruction_id = True, INSTRUCTION_ID
        if self.obeys:
            self.state = SafetyState(phase="moving", instruction_id=INSTRUCTION_ID)
        return response

    def _record(self, request, response):
        self.recorder_asked.append(request.command)
        response.accepted = True
        response.state = Record.Response.RECORDING if request.command == Record.Request.START else Record.Response.IDLE
        return response
