"""Sim: the MuJoCo table-top behind the topics of ros2_control and of two camera drivers. Nothing else knows.

Two threads beside the executor: physics in real time, and rendering (which owns the GL context). The world's own
verdict leaves through the services `sim/outcome` and `sim/reset` only; no node of the graph calls them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid, Refused
from vla_ros.core.tracking import TRACKING_RAD
from vla_ros.core.types import FloatArray
from vla_ros.nodes import conversions
from vla_ros.nodes.loop import ControlLoop
from vla_ros.nodes.runtime import ShellNode, loop_health, run
from vla_ros.sim.tasks import FAMILIES, parse
from vla_ros.sim.world import World

STEP_S = 0.002  # physics
STEPS_PER_TICK = 2  # joint states at 250 Hz
CATCH_UP_STEPS = 100  # a gap longer than 200 ms of real time is lost, and shows in the real-time factor
WORLD_TIMEOUT_S = 60.0  # software rendering on a busy machine starts slowly
RATE_WINDOW_S = 10.0  # over which the real-time factor is taken
JOINT_CABLE = "joint_states"  # as named in the parameter `unplugged`


class SimNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("sim")
        self.parameter("seed", 0, "scene and task, taken at the start and at each reset", read_only=False)
        self.parameter("family", "", f"task family: {', '.join(FAMILIES)}; empty: drawn by the seed", read_only=False)
        self.parameter(
            "task", "", "a sentence the next reset must make possible; empty: drawn by the seed", read_only=False
        )
        self.parameter("render", True, "false: no cameras")
        self.parameter(
            "unplugged",
            "",
            "fault injection: cables that are out, separated by commas: names of cameras, joint_states; empty: none",
            read_only=False,
        )
        self._unplugged: frozenset[str] = frozenset()
        self.add_on_set_parameters_callback(self._check_parameters)
        for name, handler in (("sim/outcome", self._on_outcome), ("sim/reset", self._on_reset)):
            self.serve(Trigger, name, handler, lambda reason: Trigger.Response(success=False, message=reason))
        self._physics: ControlLoop | None = None
        self._painter: threading.Thread | None = None

    def _check_parameters(self, parameters: list[Any]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "family" and parameter.value not in ("", *FAMILIES):
                return SetParametersResult(successful=False, reason=f"family: one of {', '.join(FAMILIES)}, or empty")
            if parameter.name == "task" and parameter.value and parse(parameter.value) is None:
                return SetParametersResult(successful=False, reason="task: a sentence that names one object, or empty")
            if parameter.name == "unplugged":
                names = frozenset(filter(None, str(parameter.value).split(",")))
                known = {JOINT_CABLE, *(getattr(self, "_images", {}))}
                if not names <= known:
                    return SetParametersResult(successful=False, reason=f"unplugged: of {', '.join(sorted(known))}")
                self._unplugged = names
            if parameter.name == "seed" and not parameter.value >= 0:
                return SetParametersResult(successful=False, reason="seed: >= 0")
        return SetParametersResult(successful=True)

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._state = threading.Lock()  # the physics state
        self._picture = threading.Lock()  # the model while it is drawn: a reset repaints it
        self._setpoint: tuple[FloatArray, FloatArray] | None = None
        self._placed = False  # put somewhere by a reset; drives refuse to leap back to where they were told to be
        self._width_m: float | None = None
        self._ready, self._leave, self._go = threading.Event(), threading.Event(), threading.Event()
        self._broken: BaseException | None = None
        self._joints = self.publisher(JointState, contract.arm.joint_state_topic, "joint_states")
        self._images = {c.name: self.publisher(Image, c.topic, "image") for c in contract.cameras}
        self._infos = {
            c.name: self.publisher(CameraInfo, conversions.camera_info_topic(c.topic), "camera_info")
            for c in contract.cameras
        }
        self.subscribe(JointTrajectory, contract.arm.command_topic, "joint_trajectory", self._on_trajectory)
        self.subscribe(Float64MultiArray, contract.arm.gripper_topic, "gripper_command", self._on_grip)
        self._painter = threading.Thread(target=self._paint, name="cameras", daemon=True)
        self._painter.start()
        if not self._ready.wait(WORLD_TIMEOUT_S) or self._broken is not None:
            raise Invalid(
                "render",
                self.value("render"),
                "a machine that can draw off screen",
                f"{self._broken!r}. Install libegl1 and libgl1-mesa-dri, or set render to false",
            )

    def activate(self) -> None:
        self._rebase(time.monotonic())
        self._physics = self.control_loop(self._tick, 1.0 / (STEP_S * STEPS_PER_TICK))
        self._physics.start()
        self._go.set()

    def deactivate(self) -> None:
        self._go.clear()
        if self._physics is not None:
            self._physics.stop()

    def cleanup(self) -> None:
        if self._painter is not None:
            self._leave.set()
            self._go.set()
            self._painter.join(timeout=5.0)
            self._painter = None

    # ------------------------------------------------------------------------------------------ callbacks

    def _on_trajectory(self, message: JointTrajectory) -> None:
        self._setpoint = conversions.trajectory_end(message, self._contract.joint_names)

    def _on_grip(self, message: Float64MultiArray) -> None:
        self._width_m = conversions.grip_width_m(message)

    def _on_reset(self, request: Trigger.Request) -> Trigger.Response:
        self._require_world()
        with self._picture, self._state:
            self._setpoint, self._width_m, self._placed = None, None, True
            self._world.reset(
                int(self.value("seed")), str(self.value("family")) or None, parse(str(self.value("task")))
            )
            self._rebase(time.monotonic())
        return self._on_outcome(request)

    def _require_world(self) -> None:
        if not self.active:
            raise Refused(f"the simulator is not active. {self.failure}".strip())

    def _on_outcome(self, request: Trigger.Request) -> Trigger.Response:
        self._require_world()
        with self._state:
            outcome, now_s, resisted = self._world.outcome(), self._world.time_s, self._world.resisted
        report = {
            "success": outcome.success,
            "wrong_object": outcome.wrong_object,
            "wrong_direction": outcome.wrong_direction,
            "detail": outcome.detail,
            "instruction": self._world.instruction,
            "family": self._world.task.family,
            "seed": int(self.value("seed")),
            "time_s": round(now_s, 3),
            "resisted": round(resisted, 3),
        }
        return Trigger.Response(success=outcome.success, message=json.dumps(report))

    # ------------------------------------------------------------------------------------------ physics thread

    def _rebase(self, now_s: float) -> None:
        self._base_s, self._steps = now_s, 0
        self._rate_from = (now_s, 0.0)
        self._simulated_s, self._real_time_factor = 0.0, 1.0

    def _tick(self, now_s: float) -> None:
        with self._state:
            due = int((now_s - self._base_s) / STEP_S) - self._steps
            if due > CATCH_UP_STEPS:
                self._steps += due - CATCH_UP_STEPS
                due = CATCH_UP_STEPS
            setpoint, self._setpoint = self._setpoint, None
            width_m, self._width_m = self._width_m, None
            if setpoint is not None and self._placed:
                self._placed = bool(np.abs(setpoint[0] - self._world.joints()[0]).max() > TRACKING_RAD)
            if setpoint is not None and not self._placed:
                self._world.command(*setpoint)
            if width_m is not None:
                self._world.grip(width_m)
            if due <= 0:
                return
            self._world.step(due)
            self._steps += due
            self._simulated_s += due * STEP_S
            q_rad, qd_rad_s, measured_m = self._world.joints()
        stamp = self.clocks.stamp(time.monotonic())
        if JOINT_CABLE not in self._unplugged:
            self._joints.publish(conversions.joint_state(self._contract, q_rad, qd_rad_s, measured_m, stamp))
        from_s, simulated_s = self._rate_from
        if now_s - from_s > RATE_WINDOW_S:
            self._real_time_factor = (self._simulated_s - simulated_s) / (now_s - from_s)
            self._rate_from = (now_s, self._simulated_s)

    # ------------------------------------------------------------------------------------------ camera thread

    def _paint(self) -> None:
        """Makes the world, too: the GL context belongs to the thread that makes it."""
        try:
            self._world = World(
                self._contract, int(self.value("seed")), bool(self.value("render")), str(self.value("family")) or None
            )
        except BaseException as error:  # noqa: BLE001 handed to the thread that waits in configure
            self._broken = error
            return
        finally:
            self._ready.set()
        try:
            if self.value("render"):
                self._film()
        except Exception as error:  # noqa: BLE001 fault E14: silence, noticed by age
            self.fail(f"cameras: {type(error).__name__}: {error}")
        finally:
            self._leave.wait()
            self._world.close()

    def _film(self) -> None:
        period_s = 1.0 / max(camera.rate_hz for camera in self._contract.cameras)
        self._world.render(self._contract.cameras[0].name)  # the first picture compiles shaders
        snapshot = self._world.snapshot()
        due_s = time.monotonic()
        while not self._leave.is_set():
            self._go.wait()
            due_s = max(due_s + period_s, time.monotonic())  # a picture that is late is not made up for
            if self._leave.wait(due_s - time.monotonic()):
                return
            with self._picture:
                with self._state:
                    self._world.snapshot(snapshot)
                    stamp = self.clocks.stamp(time.monotonic())
                pictures = {name: self._world.render(name, snapshot) for name in self._images}
            for name, pixels in pictures.items():
                if name in self._unplugged:
                    continue
                self._images[name].publish(conversions.rgb_image(pixels, f"camera_{name}", stamp))
                focal_px = self._world.focal_px(name)
                info = conversions.camera_info(*pixels.shape[:2], focal_px, f"camera_{name}", stamp)
                self._infos[name].publish(info)
            self.count("pictures")

    def health(self) -> Mapping[str, object]:
        return {**loop_health(self._physics), "real_time_factor": f"{self._real_time_factor:.3f}"}


def main() -> None:
    # An arm's drives do not slow down with the machine they are commanded from; and it has cameras.
    run(SimNode, control=True, shared_memory=True)


if __name__ == "__main__":
    main()
