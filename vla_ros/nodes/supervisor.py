"""Supervisor: decides what may move. A 100 Hz loop over one pure machine; the operator's services and action beside it.

It must start with torch absent, and knows no images.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

import numpy as np
from rclpy.action import CancelResponse
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger

from vla_ros.action import Execute
from vla_ros.core import wire
from vla_ros.core.clock_watch import ClockWatch
from vla_ros.core.contract import Contract
from vla_ros.core.decision import SpeedMode
from vla_ros.core.errors import Invalid, Refused
from vla_ros.core.instructions import Reply
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.supervisor import Decision, Inputs, Supervisor
from vla_ros.core.types import ArmStatus, PerceptionStatus, Severity, Source
from vla_ros.msg import ActionChunk, ArmState, Instruction, PolicyStatus, SafeCommand, SafetyEvent, SafetyState
from vla_ros.msg import PerceptionStatus as PerceptionStatusMsg
from vla_ros.nodes import conversions
from vla_ros.nodes.desk import Desk
from vla_ros.nodes.episodes import EpisodeRequests
from vla_ros.nodes.execute import GoalServer, OpenGoals, run_goal
from vla_ros.nodes.figures import LOOP_THRESHOLDS, SUPERVISOR_THRESHOLDS, MotionFigures
from vla_ros.nodes.joint_source import JointSource
from vla_ros.nodes.loop import ControlLoop
from vla_ros.nodes.runtime import NAMESPACE, ShellNode, loop_health, run
from vla_ros.srv import Instruct

STATE_PERIOD_S = 0.1  # our choice: the state is sent on every change, and this often without one
ANSWER_TIMEOUT_S = 3.0  # our choice: a verdict may take 2 s
POLICY_SILENT_S = 2.0  # our choice: four periods of PolicyStatus
AT_REST_RAD_S = 1e-3  # our choice: commanded speed below which the process may leave


class SupervisorNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("supervisor")
        self.watch(*SUPERVISOR_THRESHOLDS, *LOOP_THRESHOLDS)
        self.parameter(
            "operator_heartbeat", "contract", "required: demand it whatever the contract says; contract: as it says"
        )
        self._loop: ControlLoop | None = None
        self._decision: Decision | None = None
        self._policy_at_s = -math.inf
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._waiting: dict[int, Future[Reply]] = {}  # token -> who asked
        self._news = threading.Condition()  # notified with every published state
        self._inbox: dict[str, list[Any]] = {}
        self._desk = Desk("operator_desk", NAMESPACE)
        self.goals = OpenGoals()
        self.episodes = EpisodeRequests(self._desk)

        def refuse(reason: str) -> Trigger.Response:
            return Trigger.Response(success=False, message=reason)

        self.serve(Trigger, "interrupt", self._on_interrupt, refuse)
        self.serve(Trigger, "rearm", self._trigger("rearms"), refuse, self._desk)
        self.serve(Trigger, "home", self._trigger("home"), refuse, self._desk)
        self.serve(Trigger, "retreat", self._trigger("retreats"), refuse, self._desk)
        self.serve(
            SetBool, "teleoperate", self._on_teleoperate, lambda reason: SetBool.Response(message=reason), self._desk
        )
        self.serve(
            Instruct, "instruct", self._on_instruct, lambda reason: Instruct.Response(reason=reason[:512]), self._desk
        )
        self._action = GoalServer(
            self, Execute, "execute", self._desk, lambda goal: run_goal(self, goal), self._on_cancel
        )
        self._desk.start()

    def configure(self, contract: Contract) -> None:
        demand = str(self.value("operator_heartbeat"))
        if demand not in ("contract", "required"):
            raise Invalid("operator_heartbeat", demand, "contract or required")
        if demand == "required":  # stricter only: nothing lets go of what the contract demands
            contract = dataclasses.replace(contract, operator_heartbeat_required=True)
        self._contract = contract
        self._machine = Supervisor(contract, Kinematics(contract), self.writer_id)
        self._joints = JointSource(self, contract)
        self._policy_instruction: int | None = None
        self._heartbeat_at_s: float | None = None
        self._speed_mode: SpeedMode | None = None
        self._figures = MotionFigures()
        self._clock_watch = ClockWatch() if self.value("use_sim_time") else None
        self._perception = PerceptionStatus("", "", -math.inf)  # until perception speaks
        self._arm = ArmStatus(False, True, "no report", 0, -math.inf)  # until the arm controller speaks
        self._sent_at_s, self._sent_key = 0.0, ()
        self._commands = self.publisher(SafeCommand, "safe_command", "safe_command")
        self._states = self.publisher(SafetyState, "safety_state", "safety_state")
        self._events = self.publisher(SafetyEvent, "safety_event", "safety_event")
        self._instructions = self.publisher(Instruction, "instruction", "instruction")
        self._teleoperated = self.publisher(Bool, "teleoperated", "teleoperated")
        policy, person = (functools.partial(self._on_chunk, source) for source in (Source.POLICY, Source.TELEOPERATION))
        self.subscribe(ActionChunk, "action_chunk", "action_chunk", policy)
        self.subscribe(ActionChunk, "teleop_chunk", "action_chunk", person)  # D10: one of the two counts
        self.subscribe(PolicyStatus, "policy_status", "policy_status", self._on_policy_status)
        self.subscribe(ArmState, "arm_state", "arm_state", self._on_arm_state)
        self.subscribe(Empty, "operator_heartbeat", "operator_heartbeat", self._on_heartbeat)
        self.subscribe(Bool, "reduced_speed", "reduced_speed", self._on_reduced_speed)
        self.subscribe(PerceptionStatusMsg, "perception_status", "perception_status", self._on_perception)
        self.subscribe(Empty, "interrupt", "interrupt", lambda message: self._interrupt())

    def activate(self) -> None:
        self._loop = self.control_loop(self._tick, self._contract.rates.control_hz)
        self._loop.start()

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()
        self._answer_all("the supervisor stopped working")

    # ------------------------------------------------------------------------------------------ inputs

    def _post(self, box: str, item: Any, *, wake: bool = False) -> None:
        """Into the next tick. Interrupts wake the loop: they never wait for a tick."""
        with self._lock:
            self._inbox.setdefault(box, []).append(item)
        if wake and self._loop is not None:
            self._loop.wake()

    def _interrupt(self) -> None:
        """A stuck button must not cost a tick for each message (D5): who is stopped already is woken by nobody."""
        self._post("interrupts", None, wake=self._decision is None or not self._decision.latched)

    def _on_chunk(self, source: Source, message: ActionChunk) -> None:
        self._post("chunks", conversions.chunk(message, self.clocks, time.monotonic(), source))

    def _on_policy_status(self, message: PolicyStatus) -> None:
        if message.verdict != PolicyStatus.VERDICT_NONE:
            accepted = message.verdict == PolicyStatus.VERDICT_ACCEPTED
            self._post("verdicts", (message.instruction_id, accepted, message.reason))
        if message.ready:
            self._policy_at_s = time.monotonic()
            self._policy_instruction = message.instruction_id  # one that started anew knows none and is told again

    def _on_arm_state(self, message: ArmState) -> None:
        self._arm = wire.arm_status(message, time.monotonic())

    def _on_heartbeat(self, message: Empty) -> None:
        self._heartbeat_at_s = time.monotonic()

    def _on_reduced_speed(self, message: Bool) -> None:
        self._speed_mode = SpeedMode(bool(message.data), time.monotonic())

    def _on_perception(self, message: PerceptionStatusMsg) -> None:
        self._perception = wire.perception_status(message, time.monotonic())

    # ------------------------------------------------------------------------------------------ operator

    def ask(self, box: str, *content: Any) -> Future[Reply]:
        """Put a request to the machine; the future is resolved by the tick that decides it."""
        token = next(self._tokens)
        future: Future[Reply] = Future()
        if not self.active:
            future.set_result(Reply(token, False, 0, f"the supervisor is not active. {self.failure}".strip()))
            return future
        self._waiting[token] = future
        self._post(box, (token, *content) if content else token, wake=True)
        return future

    def _on_interrupt(self, request: Trigger.Request) -> Trigger.Response:
        if not self.active:
            raise Refused(f"the supervisor is not active: nothing moves. {self.failure}".strip())
        self._interrupt()
        return Trigger.Response(success=True, message="interrupted: the arm brakes and stays at rest until rearm")

    def _trigger(self, box: str) -> Callable[..., Any]:
        def handle(request: Trigger.Request) -> Trigger.Response:
            reply = self._answered(self.ask(box))
            return Trigger.Response(success=reply.accepted, message=reply.reason)

        return handle

    def _on_teleoperate(self, request: SetBool.Request) -> SetBool.Response:
        """Who proposes motion from now on: teleoperation (true) or the policy. A moving arm brakes first."""
        reply = self._answered(self.ask("sources", Source.TELEOPERATION if request.data else Source.POLICY))
        return SetBool.Response(success=reply.accepted, message=reply.reason)

    def _answered(self, future: Future[Reply]) -> Reply:
        try:
            return future.result(timeout=ANSWER_TIMEOUT_S)
        except NoAnswer:
            raise Refused(f"the control loop did not answer within {ANSWER_TIMEOUT_S:g} s") from None

    def instruct(self, text: str, mode: int) -> Reply:
        """Blocks until the policy has judged the text; at the desk only."""
        # Also guards the ids: until a policy has said which id it remembers, an old verdict could meet a new id.
        deadline_s = time.monotonic() + POLICY_SILENT_S
        while self.active and not self._by_hand() and not time.monotonic() - self._policy_at_s <= POLICY_SILENT_S:
            if time.monotonic() < deadline_s:
                self.next_state()  # a policy that has just started may need a moment to be heard
                continue
            return Reply(0, False, 0, f"no policy has reported for {POLICY_SILENT_S:g} s: is the policy node running?")
        return self._answered(self.ask("instructs", text, mode))

    def _by_hand(self) -> bool:
        """A person does it: what the policy knows, or whether there is one, does not matter."""
        return self._decision is not None and self._decision.source is Source.TELEOPERATION

    def _on_instruct(self, request: Instruct.Request) -> Instruct.Response:
        reply = self.instruct(request.text, int(request.mode))
        return Instruct.Response(
            accepted=reply.accepted, instruction_id=reply.instruction_id, reason=reply.reason[:512]
        )

    def next_state(self) -> Decision | None:
        """Blocks until the next published decision, or a moment longer than one should take; at the desk only."""
        with self._news:
            self._news.wait(2.0 * STATE_PERIOD_S)
        return self._decision

    def _on_cancel(self, goal: Any) -> CancelResponse:
        """The arm brakes now, not when the goal's thread looks next."""
        instruction_id = self.goals.cancel(bytes(goal.goal_id.uuid))
        if instruction_id:
            self.close_instruction(instruction_id)
        return CancelResponse.ACCEPT

    def close_instruction(self, instruction_id: int) -> None:
        self._post("closes", instruction_id, wake=True)

    def _answer_all(self, reason: str) -> None:
        for token in list(self._waiting):
            self._answer(Reply(token, False, 0, reason))

    def _answer(self, reply: Reply) -> None:
        future = self._waiting.pop(reply.token, None)
        if future is not None:
            future.set_result(reply)

    # ------------------------------------------------------------------------------------------ control loop

    def _tick(self, now_s: float) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, {}
        policy_instruction, self._policy_instruction = self._policy_instruction, None
        decision = self._machine.update(
            now_s,
            Inputs(
                joints=self._joints.newest(),
                chunks=tuple(inbox.get("chunks", ())),
                interrupts=len(inbox.get("interrupts", ())),
                rearms=tuple(inbox.get("rearms", ())),
                instructs=tuple(inbox.get("instructs", ())),
                verdicts=tuple(inbox.get("verdicts", ())),
                closes=tuple(inbox.get("closes", ())),
                home=tuple(inbox.get("home", ())),
                retreats=tuple(inbox.get("retreats", ())),
                policy_instruction_id=policy_instruction,
                heartbeat_at_s=self._heartbeat_at_s,
                speed_mode=self._speed_mode,
                arm=self._arm,
                perception=self._perception,
                sources=tuple(inbox.get("sources", ())),
                clock_runs=self._clock_watch is None or self._clock_watch.runs(now_s, self.ros_now_ns()),
            ),
        )
        if decision.command is not None:
            self._commands.publish(conversions.command_message(decision.command, self.clocks))
        self._decision = decision
        if decision.phase == "moving" and self._machine.executor.active:
            executor, limited = self._machine.executor, decision.severity is Severity.LIMIT
            self._figures.tick(decision.counters.chunks_accepted, executor.seam, executor.age_s(now_s), limited)
        if decision.publish_instruction is not None:
            instruction_id, text = decision.publish_instruction
            self._instructions.publish(Instruction(instruction_id=instruction_id, text=text))
        self._send_state(now_s, decision)
        for event in decision.events:
            self._events.publish(conversions.event_message(event, self.clocks.stamp(now_s)))
        for reply in decision.replies:
            self._answer(reply)

    def _send_state(self, now_s: float, decision: Decision) -> None:
        source = decision.source
        key = (decision.severity, decision.reason, decision.latched, decision.phase, decision.instruction_id, source)
        if key == self._sent_key and now_s - self._sent_at_s < STATE_PERIOD_S:
            return
        self._sent_key, self._sent_at_s = key, now_s
        # Beside each state, so that also a piece cut out of a recording says who drove.
        self._teleoperated.publish(Bool(data=source is Source.TELEOPERATION))
        loop = self._loop.stats() if self._loop is not None else None
        self._states.publish(
            conversions.state_message(
                decision,
                stamp=self.clocks.stamp(now_s),
                writer_id=self.writer_id,
                malformed_chunks=self.counters.get("rejected action_chunk", 0),
                ticks=loop.ticks if loop else 0,
                late_ticks=loop.late_ticks if loop else 0,
            )
        )
        with self._news:
            self._news.notify_all()

    # ------------------------------------------------------------------------------------------ leaving, figures

    def may_leave(self, asked_at_s: float, now_s: float) -> bool:
        if not self.active or self._decision is None or self._decision.command is None:
            return True
        if now_s == asked_at_s:
            self._post("interrupts", None, wake=True)
            return False
        return bool(np.abs(self._decision.command.qd_rad_s).max() < AT_REST_RAD_S)

    def close(self) -> None:
        self._action.destroy()
        self._desk.close()

    def health(self) -> Mapping[str, object]:
        seen = {}
        if self._decision is not None:
            # Without torques in the joint states C6 is not watched, and nobody should believe that it is.
            seen = {"source": self._decision.source.name.lower(), "contact_monitored": self._decision.contact_monitored}
        return {**loop_health(self._loop), **self._figures.values(), **seen}


def main() -> None:
    run(SupervisorNode, control=True)


if __name__ == "__main__":
    main()
