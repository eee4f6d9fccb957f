"""Teleoperation: a person's keys or gamepad become chunks, which the supervisor judges as it does a policy's.

By itself (launch argument `joy`) it hears a gamepad on `joy`; in `vla teleop` it also gets the keys of a terminal. It
proposes motion only while the supervisor says that a person drives (`teleoperated`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Refused
from vla_ros.core.instructions import normalise_text
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.teleop import SPEEDS_M_S, TURN_RAD_PER_M, Speeds, Teleoperation
from vla_ros.core.teleop_drive import PERIOD_S, Driver, Word
from vla_ros.core.teleop_input import ACT_KEYS, Act, Pad, PadMapping
from vla_ros.core.types import FloatArray, JointSample
from vla_ros.data.episode import State
from vla_ros.msg import ActionChunk, SafetyState
from vla_ros.nodes import conversions, qos
from vla_ros.nodes.joint_source import JointSource
from vla_ros.nodes.runtime import ShellNode, run
from vla_ros.srv import Instruct, Record

RECORDER_AGAIN_S = 0.5  # our choice: so often a recorder that does not answer is asked
RECORD_COMMANDS = {
    Act.RECORD: (Record.Request.START, Record.Request.NOT_JUDGED),
    Act.KEEP: (Record.Request.KEEP, Record.Request.SUCCEEDED),
    Act.FAILED: (Record.Request.KEEP, Record.Request.FAILED),
    Act.DISCARD: (Record.Request.DISCARD, Record.Request.NOT_JUDGED),
}


class TeleopNode(ShellNode):
    def __init__(self, text: str = "", operator: str = "") -> None:
        """`text`: what a demonstration shows; `operator`: who makes it, for the recorder."""
        super().__init__("teleop")
        mapping = PadMapping()
        self.parameter("text", "", "what a demonstration shows; the instruction that is opened to begin one")
        self.parameter("speeds_m_s", list(SPEEDS_M_S), "steps of the tool's speed, increasing [m/s]")
        self.parameter("turn_rad_per_m", TURN_RAD_PER_M, "how much rotation goes with a speed [rad/m]")
        self.parameter("deadzone", mapping.deadzone, "share of a stick's way that counts as its middle")
        for name, axis in mapping.axes.items():
            self.parameter(f"axis.{name}", axis, f"index in Joy.axes that moves along or about {name}; -1: none")
            self.parameter(f"scale.{name}", mapping.scale[name], f"share of the speed for {name}; negative turns it")
        self.parameter("button.deadman", mapping.deadman, "index in Joy.buttons; nothing moves unless it is held")
        for act, button in mapping.acts.items():
            self.parameter(f"button.{act.name.lower()}", button, f"index in Joy.buttons: {act.value}; -1: none")
        self.attended = False  # a person sits at a terminal
        self.note = ""  # the newest answer, for people
        self.recording = ""  # the recorder's state, as it last told it
        self.recorded = False  # a recorder hears what is proposed here
        self.state: SafetyState | None = None
        self._given, self._operator = text, operator
        self._pressed: deque[tuple[str, float]] = deque()
        self._finishing = 0
        self.sequence = 0  # chunks proposed
        self._teleoperate = self.create_client(SetBool, "teleoperate")
        self._instruct = self.create_client(Instruct, "instruct")
        self._rearm = self.create_client(Trigger, "rearm")
        self._home = self.create_client(Trigger, "home")
        self._record: Any = None
        self._recorder_asked_s = -math.inf
        self.timer("teleop", PERIOD_S, self._tick)

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        text = self._given or str(self.value("text"))
        self.text = normalise_text(text) if text else ""
        speeds = Speeds(tuple(float(v) for v in self.value("speeds_m_s")), float(self.value("turn_rad_per_m")))
        default = PadMapping()
        mapping = PadMapping(
            {name: int(self.value(f"axis.{name}")) for name in default.axes},
            {name: float(self.value(f"scale.{name}")) for name in default.axes},
            int(self.value("button.deadman")),
            {act: int(self.value(f"button.{act.name.lower()}")) for act in default.acts},
            float(self.value("deadzone")),
        )
        self.driver = Driver(contract, Teleoperation(contract, Kinematics(contract), speeds), Pad(mapping))
        self.hand = self.driver.hand
        self._joints = JointSource(self, contract)
        self._sample: JointSample | None = None
        self._chunks = self.publisher(ActionChunk, "teleop_chunk", "action_chunk")
        # Endpoints are announced in the order in which they are made: a recorder that has found this client, and
        # answers it, has found the publisher, too, and loses nothing that is proposed from then on.
        self._record, self.recorded = self.create_client(Record, "record"), False
        self._interrupts = self.publisher(Empty, "interrupt", "interrupt")
        self._heartbeats = self.publisher(Empty, "operator_heartbeat", "operator_heartbeat")
        self.subscribe(SafetyState, "safety_state", "safety_state", self._on_state)
        self.subscribe(Bool, "teleoperated", "teleoperated", self._on_driver)
        self.subscribe(Joy, "joy", "joy", self._on_joy)

    def cleanup(self) -> None:
        if self._record is not None:
            self.destroy_client(self._record)
            self._record = None

    # ------------------------------------------------------------------------------------------ inputs

    def press(self, key: str) -> None:
        """A key of the terminal, from any thread. A stop does not wait for the next tick."""
        if ACT_KEYS.get(key) is Act.STOP:
            self.stop()
        else:
            self._pressed.append((key, time.monotonic()))

    def stop(self) -> None:
        """Interrupt supervisor and arm controller; repeated until it is seen to work."""
        self.driver.stop(time.monotonic())
        self._interrupts.publish(Empty())

    def _on_state(self, message: SafetyState) -> None:
        self.state = message
        self.driver.word = Word(time.monotonic(), message.instruction_id, message.phase, message.latched)

    def _on_driver(self, message: Bool) -> None:
        self.driver.told(bool(message.data))

    def _on_joy(self, message: Joy) -> None:
        for act in self.driver.pad.take(message.axes, message.buttons, time.monotonic()):
            self.do(act)

    @property
    def connected(self) -> bool:
        """The supervisor's services are there."""
        asked = (self._teleoperate, self._instruct, self._rearm, self._home)
        return all(client.service_is_ready() for client in asked)

    @property
    def recorder_there(self) -> bool:
        return self._record is not None and self._record.service_is_ready()

    @property
    def in_control(self) -> bool:
        return self.driver.in_control

    @property
    def pad_alive(self) -> bool:
        return self.driver.pad.alive(time.monotonic())

    # ------------------------------------------------------------------------------------------ motion

    def _tick(self) -> None:
        if not self.active:
            return
        now_s = time.monotonic()
        while self._pressed:
            key, at_s = self._pressed.popleft()
            act = self.driver.keys.press(key, at_s)
            if act is not None:
                self.do(act)
        self._beat(now_s)
        if not self.recorded and self.recorder_there and now_s - self._recorder_asked_s >= RECORDER_AGAIN_S:
            self._recorder_asked_s = now_s
            self._ask(self._record, Record.Request(command=Record.Request.STATUS), self._recorder_answered)
        self._sample = self._joints.newest()
        rows = self.driver.propose(now_s, self._sample, self._joints.stamp_ns)
        if rows is not None and self.state is not None:
            self._propose(self.state.instruction_id, rows)

    def _propose(self, instruction_id: int, rows: FloatArray) -> None:
        self.sequence += 1
        action = self._contract.action
        message = conversions.chunk_message(
            rows,
            stamp_ns=self._joints.stamp_ns,
            writer_id=self.writer_id,
            instruction_id=instruction_id,
            sequence=self.sequence,
            contract_hash=self._contract.hash,
            space=action.space,
            dt_s=action.dt_s,
            inference_s=0.0,
            confidence=1.0,
            done_probability=1.0 if self._finishing == instruction_id else 0.0,
        )
        self._chunks.publish(message)

    def _beat(self, now_s: float) -> None:
        if self.driver.beat(now_s, qos.HEARTBEAT_PERIOD_S, self.attended):
            self._heartbeats.publish(Empty())
        if self.driver.stop_again(now_s):
            self._interrupts.publish(Empty())

    # ------------------------------------------------------------------------------------------ acts

    def do(self, act: Act) -> None:
        """In the executor's thread. What was refused is told in `note`."""
        try:
            self._do(act)
        except Refused as refusal:
            self._say(str(refusal))

    def _do(self, act: Act) -> None:
        if act is Act.STOP:
            self.stop()
        elif act is Act.CONTROL:
            self.take_control(not self.in_control)
        elif act is Act.TASK:
            self._task()
        elif act is Act.GRIP:
            if not self.in_control or self._sample is None:
                raise Refused("take over first: the policy has the hand")
            self._say("the hand opens" if self.hand.toggle_grip(self._sample.gripper_width_m) else "the hand closes")
        elif act in (Act.FASTER, Act.SLOWER):
            self.hand.faster(1 if act is Act.FASTER else -1)
            self._say(f"{self.hand.speed_m_s:g} m/s")
        elif act is Act.FRAME:
            self.hand.tool_axes = not self.hand.tool_axes
        elif act is Act.REARM:
            self.driver.rearmed()
            self._ask(self._rearm, Trigger.Request(), lambda a: self._told(a.success, "rearmed", a.message))
        elif act is Act.HOME:
            self._ask(self._home, Trigger.Request(), lambda a: self._told(a.success, "moving home", a.message))
        else:
            self._ask_recorder(act)

    def take_control(self, wanted: bool) -> None:
        """Take over from the policy, or hand back to it. The arm brakes first. Raises `Refused` when nobody answers."""
        self.driver.keys.release()
        words = "you drive" if wanted else "handed back to the policy"
        request = SetBool.Request(data=wanted)
        self._ask(self._teleoperate, request, lambda a: self._told(a.success, words, a.message))

    def _task(self) -> None:
        state = self.state
        if not self.in_control or state is None:
            raise Refused("take over first")
        if state.instruction_id:
            self._finishing = state.instruction_id
            self._say("done: the arm settles")
            return
        if not self.text:
            raise Refused("no text: say what you will show, as in `vla teleop --text 'pick up the red ball'`")
        request = Instruct.Request(text=self.text, mode=Instruct.Request.MODE_REPLACE)
        self._ask(self._instruct, request, lambda a: self._told(a.accepted, f"begin: {self.text}", a.reason))

    def _ask_recorder(self, act: Act) -> None:
        command, success = RECORD_COMMANDS[act]
        text = self.text if act is Act.RECORD else ""
        request = Record.Request(command=command, text=text, operator_name=self._operator, success=success)

        def answered(answer: Record.Response) -> None:
            self._recorder_answered(answer)
            self._told(answer.accepted, f"{self.recording} {answer.uri.rpartition('/')[2]}", answer.reason)

        self._ask(self._record, request, answered)

    def _recorder_answered(self, answer: Record.Response) -> None:
        self.recording = State(answer.state).name.lower()
        self.recorded = self.recorded or answer.accepted

    def _ask(self, client: Any, request: Any, then: Callable[[Any], None]) -> None:
        if not client.service_is_ready():
            raise Refused(f"nobody offers {client.srv_name}: is the graph running?")
        answered = self.guarded(client.srv_name, lambda future: then(future.result()))
        client.call_async(request).add_done_callback(answered)

    def _told(self, accepted: bool, words: str, reason: str) -> None:
        self._say(words if accepted else f"refused: {reason}")

    def _say(self, text: str) -> None:
        self.note = text
        self.get_logger().info(text)

    # ------------------------------------------------------------------------------------------ leaving

    def may_leave(self, asked_at_s: float, now_s: float) -> bool:
        """What was taken over is handed back."""
        if not self.active or not self.in_control:
            return True
        if now_s == asked_at_s:
            self.attended = False
            try:
                self.take_control(False)
            except Refused:
                return True  # the supervisor is gone, and with it what could be handed back
        return False

    def health(self) -> Mapping[str, object]:
        return {"in_control": self.in_control, "gamepad": self.pad_alive, "chunks": self.sequence}


def main() -> None:
    run(TeleopNode)


if __name__ == "__main__":
    main()
