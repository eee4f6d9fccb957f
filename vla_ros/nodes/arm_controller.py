"""Arm controller: SafeCommand in, joint trajectory out. Brakes by itself when the supervisor is silent or wrong.

It must start with torch absent, and knows neither images nor chunks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
from std_msgs.msg import Empty, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_ros.arm.controller import ArmController, ArmOutput
from vla_ros.core.contract import Contract
from vla_ros.core.types import Command
from vla_ros.msg import ArmState, SafeCommand
from vla_ros.nodes import conversions
from vla_ros.nodes.figures import LOOP_THRESHOLDS
from vla_ros.nodes.joint_source import JointSource
from vla_ros.nodes.loop import ControlLoop
from vla_ros.nodes.runtime import ShellNode, loop_health, run

AT_REST_RAD_S = 1e-3  # our choice: commanded speed below which the process may leave
STATE_PERIOD_S = 0.1  # msg/ArmState
GRIP_PERIOD_S = 0.1  # our choice: the wanted width is repeated, so that a late subscriber gets it


class ArmControllerNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("arm_controller")
        self.watch(*LOOP_THRESHOLDS)
        self._loop: ControlLoop | None = None
        self._output: ArmOutput | None = None

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._controller = ArmController(contract)
        self._joints = JointSource(self, contract)
        self._lock = threading.Lock()
        self._command: Command | None = None
        self._interrupts = 0
        self._command_at_s = 0.0
        self._width_m, self._gripped_at_s = float("nan"), 0.0
        self._trajectories = self.publisher(JointTrajectory, contract.arm.command_topic, "joint_trajectory")
        self._states = self.publisher(ArmState, "arm_state", "arm_state")
        self._state_at_s, self._state_key = 0.0, ()
        self._grips = self.publisher(Float64MultiArray, contract.arm.gripper_topic, "gripper_command")
        self.subscribe(SafeCommand, "safe_command", "safe_command", self._on_command)
        self.subscribe(Empty, "interrupt", "interrupt", self._on_interrupt)

    def activate(self) -> None:
        self._loop = self.control_loop(self._tick, self._contract.rates.control_hz)
        self._loop.start()

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    # ------------------------------------------------------------------------------------------ callbacks

    def _on_command(self, message: SafeCommand) -> None:
        now_s = time.monotonic()
        command = conversions.command(message, self.clocks, now_s)
        self.count("commands")
        with self._lock:
            self._command, self._command_at_s = command, now_s
        if self._loop is not None:
            self._loop.wake()  # passed on at once: waiting for the own tick would cost up to 10 ms

    def _on_interrupt(self, message: Empty) -> None:
        with self._lock:
            self._interrupts += 1
        self.count("interrupts")
        if self._loop is not None and not self._controller.latched:  # a stuck button costs no ticks (D5)
            self._loop.wake()

    # ------------------------------------------------------------------------------------------ control loop

    def _tick(self, now_s: float) -> None:
        with self._lock:
            command, self._command = self._command, None
            interrupts, self._interrupts = self._interrupts, 0
        output = self._controller.update(now_s, command, self._joints.newest(), interrupts)
        self._send_state(now_s)
        if output is None:
            return
        if output.latched and not (self._output is not None and self._output.latched):
            age_ms = (now_s - self._command_at_s) * 1e3
            self.log_slowly("latched", f"latched stop: {output.reason} (newest command {age_ms:.0f} ms ago)")
        self._output = output
        delay_s = self._contract.period_s
        self._trajectories.publish(
            conversions.trajectory(self._contract.joint_names, output.q_rad, output.qd_rad_s, delay_s)
        )
        if output.gripper_width_m != self._width_m or now_s - self._gripped_at_s > GRIP_PERIOD_S:
            self._width_m, self._gripped_at_s = output.gripper_width_m, now_s
            self._grips.publish(conversions.grip(output.gripper_width_m))

    def _send_state(self, now_s: float) -> None:
        status = self._controller.status(now_s)
        key = (status.ready, status.latched, status.reason, status.rearm_counter)
        if key == self._state_key and now_s - self._state_at_s < STATE_PERIOD_S:
            return
        self._state_key, self._state_at_s = key, now_s
        self._states.publish(
            conversions.arm_state_message(
                status,
                stamp=self.clocks.stamp(now_s),
                writer_id=self.writer_id,
                supervisor_id=self._controller.supervisor_id,
            )
        )

    # ------------------------------------------------------------------------------------------ leaving, figures

    def may_leave(self, asked_at_s: float, now_s: float) -> bool:
        """Last of all: when the supervisor is silent and our own ramp, if one was needed, is over."""
        if self._output is None or not self.active:
            return True
        silent = now_s - max(self._command_at_s, asked_at_s) > 2.0 * self._contract.timeouts.safe_command_s
        return silent and bool(np.abs(self._output.qd_rad_s).max() < AT_REST_RAD_S)

    def health(self) -> Mapping[str, object]:
        latched = self._controller.reason if self._controller.latched else "no"
        return {**loop_health(self._loop), "latched": latched, "commands_ignored": self._controller.ignored}


def main() -> None:
    run(ArmControllerNode, control=True)


if __name__ == "__main__":
    main()
