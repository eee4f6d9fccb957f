"""The ways to stop an arm that `vla bench stop` measures, as data: what is done, what answers, what is put right."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveGraph
from vla_ros.cli.stream import Recorder
from vla_ros.core.contract import Contract
from vla_ros.core.joints import JointStateReader
from vla_ros.msg import ArmState, SafeCommand
from vla_ros.nodes.conversions import joint_sample

REST_RAD_S = 0.01  # safety.md section 4: standstill
STILL_S = 0.1  # our choice: at rest when it has been for this long
NODE_BACK_S = 30.0
EXECUTE_S = 60.0
OTHER_SENTENCES = ("pick up the red ball", "pick up the blue cube")  # one of them differs from any open one
HOLD_OR_STOP = (SafeCommand.MODE_HOLD, SafeCommand.MODE_STOP)
EVIDENCE_SAMPLES = 40  # of one outlier


class Speedometer:
    """Measured motion, from joint states: speed of the fastest joint, which one, and the opening of the gripper."""

    def __init__(self, client: GraphClient, contract: Contract) -> None:
        self._reader = JointStateReader(contract)
        self._names = contract.joint_names
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float, int, float]] = deque(maxlen=2000)  # receipt, rad/s, joint, m
        client.subscribe(JointState, contract.arm.joint_state_topic, "joint_states", self._on_joints)

    def _on_joints(self, message: JointState) -> None:
        now_s = time.monotonic()
        sample = joint_sample(message, self._reader, now_s)
        speed = np.abs(sample.qd_rad_s)
        with self._lock:
            self._samples.append((now_s, float(speed.max()), int(speed.argmax()), sample.gripper_width_m))

    def rest_after_s(self, event_s: float) -> float | None:
        """From the event until measured speed stays below `REST_RAD_S`; None while it does not."""
        with self._lock:
            after = [(t, v) for t, v, _, _ in self._samples if t >= event_s]
        return rest_after_s(event_s, after)

    def evidence(self, event_s: float, from_s: float) -> list[dict[str, Any]]:
        """What moved later than `from_s` after the event: time, joint, speed and gripper, thinned out."""
        with self._lock:
            late = [s for s in self._samples if s[0] >= event_s + from_s and s[1] >= REST_RAD_S]
        step = max(1, -(-len(late) // EVIDENCE_SAMPLES))
        return [
            {
                "t_ms": round((t - event_s) * 1e3, 1),
                "joint": self._names[joint],
                "speed_rad_s": round(speed, 4),
                "gripper_m": round(width, 4),
            }
            for t, speed, joint, width in late[::step]
        ]


def rest_after_s(event_s: float, samples: Sequence[tuple[float, float]]) -> float | None:
    """From the event to the last moving one of (time, speed) after it; None before it has stood for `STILL_S`."""
    moving = [t for t, v in samples if v >= REST_RAD_S]
    last_s = moving[-1] if moving else event_s
    if not samples or samples[-1][0] - last_s < STILL_S:
        return None
    return last_s - event_s


class Rig:
    """The live graph of the benchmark with everything that listens to it."""

    def __init__(self, graph: LiveGraph, contract: Contract) -> None:
        self.graph, self.client, self.contract = graph, graph.client, contract
        self.recorder = Recorder(self.client)
        self.speed = Speedometer(self.client, contract)
        self.goal: Any = None  # handle of the open `execute` goal
        self._latched_at_s = -np.inf
        self._latched = True
        self.client.subscribe(ArmState, "arm_state", "arm_state", self._on_arm)

    def _on_arm(self, message: ArmState) -> None:
        if message.latched and not self._latched:
            self._latched_at_s = time.monotonic()
        self._latched = message.latched

    # What answers: steady time of the first decelerating command after the event.

    def stopped_after(self, event_s: float) -> float | None:
        return self.recorder.first((SafeCommand.MODE_STOP,), event_s)

    def held_after(self, event_s: float) -> float | None:
        return self.recorder.first(HOLD_OR_STOP, event_s)

    def latched_after(self, event_s: float) -> float | None:
        """The arm controller says that it brakes in the tick that sends the first setpoint of its brake."""
        return self._latched_at_s if self._latched_at_s >= event_s else None

    # When it stands.

    def rest_measured_s(self, event_s: float) -> float | None:
        return self.speed.rest_after_s(event_s)

    def rest_commanded_s(self, event_s: float) -> float | None:
        """Where nothing measures any more."""
        with self.recorder.lock:
            stream = self.recorder.stream
            pairs = zip(stream.received_s, stream.qd_rad_s, strict=False)
            after = [(t, float(np.abs(qd).max())) for t, qd in pairs if t >= event_s]
        return rest_after_s(event_s, after)

    def moves_on_after(self, reacted_s: float) -> bool:
        return self.recorder.first((SafeCommand.MODE_MOVE,), reacted_s) is not None


# ---------------------------------------------------------------------------------------------------- what is done
# Each returns the steady time of the event.


def _timed(act: Callable[[Rig], object]) -> Callable[[Rig], float]:
    """The event is the call of `act`."""

    def timed(rig: Rig) -> float:
        at_s = time.monotonic()
        act(rig)
        return at_s

    return timed


def _new_instruction(rig: Rig) -> None:
    state = rig.client.state
    rig.client.instruct_or_fail(next(text for text in OTHER_SENTENCES if state is None or text != state.text))


def _heartbeat(rig: Rig) -> float:
    rig.client.leave_charge()
    return rig.client.heartbeat_at_s


def _unplug(name: str) -> Callable[[Rig], float]:
    return _timed(lambda rig: rig.client.set_parameters("sim", unplugged=name))


# ---------------------------------------------------------------------------------------------------- what is put right


def _nothing(rig: Rig) -> None:
    """An operator's stop leaves nothing to repair."""


def _take_charge(rig: Rig) -> None:
    rig.client.take_charge(full_speed=True)


def _plug_in(rig: Rig) -> None:
    rig.client.set_parameters("sim", unplugged="")


def _new_policy(rig: Rig) -> None:
    if "policy" in rig.graph.session.processes:  # the trial ended before it was killed
        return
    rig.client.policy = None
    rig.graph.restart("policy")
    rig.client.wait_until(
        lambda: rig.client.policy is not None and rig.client.policy.ready, NODE_BACK_S, "the policy did not come back"
    )


def _new_supervisor(rig: Rig) -> None:
    if "supervisor" in rig.graph.session.processes:
        return
    rig.client.state = None
    rig.graph.restart("supervisor")
    rig.client.wait_until(lambda: rig.client.state, NODE_BACK_S, "the supervisor did not come back")


@dataclass(frozen=True)
class Path:
    """One way. Bars [s]: rows of safety.md section 5; `rest_s` with the 100 ms that random phases are allowed."""

    act: Callable[[Rig], float]
    react_s: float
    rest_s: float
    reacted: Callable[[Rig, float], float | None] = Rig.held_after
    rested: Callable[[Rig, float], float | None] = Rig.rest_measured_s
    restore: Callable[[Rig], None] = _nothing
    operator: bool = False  # one of the interrupts: their figures are also given together
    by_execute: bool = False  # the motion is begun by an `execute` goal
    goes_on: bool = False  # the arm may move on before it stands


PATHS: dict[str, Path] = {
    "service": Path(
        _timed(lambda rig: rig.client.begin_interrupt()), 0.030, 0.450, Rig.stopped_after, operator=True
    ),  # D1
    "topic": Path(
        _timed(lambda rig: rig.client.interrupt_topic()), 0.030, 0.450, Rig.stopped_after, operator=True
    ),  # D1
    # what `vla interrupt` and a console call: the topic, repeated until the state shows the stop
    "console": Path(_timed(lambda rig: rig.client.interrupt()), 0.030, 0.450, Rig.stopped_after, operator=True),  # D1
    "new_instruction": Path(_timed(_new_instruction), 0.050, 0.500, goes_on=True),  # D7, and the policy's verdict
    "cancel": Path(_timed(lambda rig: rig.goal.cancel_goal_async()), 0.030, 0.450, by_execute=True, operator=True),
    "heartbeat": Path(_heartbeat, 0.550, 1.000, Rig.stopped_after, restore=_take_charge),  # D4
    "policy_killed": Path(lambda rig: rig.graph.kill("policy"), 0.530, 1.000, restore=_new_policy),  # B5
    "supervisor_killed": Path(  # E2
        lambda rig: rig.graph.kill("supervisor"), 0.080, 0.500, Rig.latched_after, restore=_new_supervisor
    ),
    "camera": Path(_unplug("scene"), 0.230, 0.650, restore=_plug_in),  # A1
    "joint_states": Path(  # A7
        _unplug("joint_states"), 0.080, 0.500, rested=Rig.rest_commanded_s, restore=_plug_in
    ),
}
