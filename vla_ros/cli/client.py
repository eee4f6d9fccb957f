"""The operator's rclpy client of the graph: one node, one spinning thread, blocking calls with timeouts."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, Empty
from std_srvs.srv import Trigger

from vla_ros import paths
from vla_ros.action import Execute
from vla_ros.cli.report import CliError, Unreachable
from vla_ros.msg import ArmState, PolicyStatus, SafetyState
from vla_ros.nodes import qos, security
from vla_ros.nodes.runtime import NAMESPACE
from vla_ros.srv import Instruct

CORE_NODES = ("arm_controller", "supervisor", "perception", "policy")
SIM_NODES = (*CORE_NODES, "sim")
INTERRUPT_PERIOD_S = 0.05  # fault D4: repeated until the state shows it
REARM_ANSWER_S = 1.5  # of a supervisor that is there; its own answer takes milliseconds
STATE_ANSWER_S = 1.0  # the same of a node's lifecycle service
CALL_TIMEOUT_S = 5.0
POLL_S = 0.02


@dataclass
class Health:
    """Newest diagnostics of one node."""

    level: int
    message: str
    values: dict[str, str]


class GraphClient:
    """Use as a context manager. Methods block, from any thread but the spinning one."""

    def __init__(self, namespace: str = NAMESPACE, domain_id: int | None = None) -> None:
        paths.set_ros_environment()
        self.namespace = namespace.strip("/")
        self.domain_id = domain_id
        try:
            security.require(os.environ)
            self._join(domain_id)
        except security.SecurityRefused as refusal:
            raise CliError(str(refusal)) from None
        self.state: SafetyState | None = None
        self.policy: PolicyStatus | None = None
        self.arm: ArmState | None = None
        self.health: dict[str, Health] = {}
        self._changed = threading.Condition()
        self._clients: dict[str, Any] = {}
        self._action: ActionClient | None = None
        self._heart: Any = None  # timer of the operator heartbeat, once in charge
        self._in_charge = self._full_speed = False
        self.heartbeat_at_s = 0.0  # steady time of the last one sent
        self.subscribe(SafetyState, "safety_state", "safety_state", self._on_state)
        self.subscribe(PolicyStatus, "policy_status", "policy_status", self._on_policy)
        self.subscribe(ArmState, "arm_state", "arm_state", self._on_arm)
        self.subscribe(DiagnosticArray, "/diagnostics", "diagnostics", self._on_diagnostics)
        self._interrupts = self.node.create_publisher(Empty, "interrupt", qos.offered("interrupt"))
        self._reduced = self.node.create_publisher(Bool, "reduced_speed", qos.offered("reduced_speed"))
        self._heartbeats = self.node.create_publisher(Empty, "operator_heartbeat", qos.offered("operator_heartbeat"))
        self._client(Trigger, "interrupt")  # made now: discovery takes 60 to 90 ms that no interrupt should wait for
        self._spinning = True
        self._failure: Exception | None = None  # what ended the spinning thread, if anything did
        # Not the events executor: it does not survive endpoints that other threads than the spinning one make.
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="client", daemon=True)
        self._thread.start()

    def _join(self, domain_id: int | None) -> None:
        self._context = rclpy.Context()
        enclave = ["--ros-args", "--enclave", "/vla/operator"]
        try:
            rclpy.init(args=enclave, context=self._context, domain_id=domain_id)
            self.node = rclpy.create_node(
                "operator", namespace=self.namespace, context=self._context, enable_rosout=False
            )
        except Exception as error:  # which type differs by release
            raise security.explain(error, os.environ) from error

    def __enter__(self) -> GraphClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._spinning:
            return
        self._spinning = False
        self._thread.join(timeout=2.0)
        if self._action is not None:
            self._action.destroy()
        self.node.destroy_node()
        self._executor = None  # type: ignore[assignment]
        rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        try:
            while self._spinning and self._context.ok():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            self._spinning = False
        except Exception as error:  # noqa: BLE001  whoever waits for something hears of it, see wait_until
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def subscribe(self, kind: type, topic: str, stream: str, callback: Callable[..., None]) -> Any:
        """The callback runs in the spinning thread and must be short."""
        return self.node.create_subscription(kind, topic, callback, qos.requested(stream))

    def record(self, kind: type, topic: str, stream: str, callback: Callable[[Any, Any], None]) -> Any:
        """As `subscribe`, for those who want every message, with what the middleware says about each: of two that come
        while this thread is busy a plain subscription with a depth of one gives the newer only."""
        return self.node.create_subscription(kind, topic, callback, qos.recorded(stream))

    def received_s(self, info: Any) -> float:
        """Steady time at which the middleware received a message; Python gets it up to milliseconds later."""
        now_s, received_ns = time.monotonic(), int(info["received_timestamp"])
        age_s = (self.node.get_clock().now().nanoseconds - received_ns) * 1e-9 if received_ns > 0 else 0.0
        return now_s - max(age_s, 0.0)

    def unsubscribe(self, subscription: Any) -> None:
        """In the spinning thread: it may be about to wait for this very subscription."""
        self._executor.create_task(self.node.destroy_subscription, subscription)

    # ------------------------------------------------------------------------------------------ state

    def _on_state(self, message: SafetyState) -> None:
        with self._changed:
            self.state = message
            self._changed.notify_all()

    def _on_policy(self, message: PolicyStatus) -> None:
        with self._changed:
            self.policy = message
            self._changed.notify_all()

    def _on_arm(self, message: ArmState) -> None:
        with self._changed:
            self.arm = message
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self._changed:
            for status in message.status:
                level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
                values = {pair.key: pair.value for pair in status.values}
                self.health[status.name] = Health(level, status.message, values)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], Any], timeout_s: float, what: str = "") -> Any:
        """The first true value of `condition`, looked at on every message and every 20 ms; `Unreachable` after that."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                value = condition()
                if value:
                    return value
                if self._failure is not None:
                    raise CliError(f"this client no longer hears the graph: {self._failure!r}") from self._failure
                left_s = deadline_s - time.monotonic()
                if left_s <= 0.0:
                    if what:
                        raise Unreachable(f"{what}: not within {timeout_s:g} s")
                    return value
                self._changed.wait(min(left_s, POLL_S))

    # ------------------------------------------------------------------------------------------ calls

    def call(self, kind: type, name: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        client = self.wait_for_service(kind, name, timeout_s)
        shown = f"/{self.namespace}/{name}"
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            raise Unreachable(f"{shown} did not answer within {timeout_s:g} s")
        return future.result()

    def wait_for_service(self, kind: type, name: str, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """The rclpy client, once somebody offers the service."""
        client = self._client(kind, name)
        if not self.wait_until(client.service_is_ready, timeout_s):
            raise Unreachable(
                f"nobody offers /{self.namespace}/{name} (waited {timeout_s:g} s). Start the graph with "
                "`vla launch sim`, and check that ROS_DOMAIN_ID is the same here and there"
            )
        return client

    def _client(self, kind: type, name: str) -> Any:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        return self._clients[name]

    def trigger(self, name: str, timeout_s: float = CALL_TIMEOUT_S) -> Trigger.Response:
        return self.call(Trigger, name, Trigger.Request(), timeout_s)

    def instruct(self, text: str, mode: int = Instruct.Request.MODE_REPLACE) -> Instruct.Response:
        return self.call(Instruct, "instruct", Instruct.Request(text=text, mode=mode))

    def instruct_or_fail(self, text: str) -> None:
        """For a sentence that has to be accepted."""
        answer = self.instruct(text)
        if not answer.accepted:
            raise CliError(f"{text!r} was refused: {answer.reason}")

    def execute(self, text: str, timeout_s: float, feedback: Callable[[Any], None] | None = None) -> Any:
        """The handle of an `execute` goal that was answered. `feedback` runs in the spinning thread."""
        if self._action is None:
            self._action = ActionClient(self.node, Execute, "execute")
        if not self.wait_until(self._action.server_is_ready, CALL_TIMEOUT_S):
            raise Unreachable(f"nobody offers /{self.namespace}/execute (waited {CALL_TIMEOUT_S:g} s)")
        sent = self._action.send_goal_async(Execute.Goal(text=text, timeout=timeout_s), feedback_callback=feedback)
        self.wait_until(sent.done, CALL_TIMEOUT_S, f"/{self.namespace}/execute did not answer")
        return sent.result()

    def rearm(self, timeout_s: float = CALL_TIMEOUT_S) -> Trigger.Response:
        """Asked again while the arm comes to rest; a refusal for another reason, or after `timeout_s`, is returned.

        Also asked again when nobody answers for a while: a killed supervisor stays in the graph for 20 s, and a request
        that only reached its ghost is lost. A second rearm changes nothing."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            last = time.monotonic() + REARM_ANSWER_S >= deadline_s
            try:
                response = self.trigger("rearm", REARM_ANSWER_S)
                if response.success or last:
                    return response
            except Unreachable:
                if last:
                    raise
            self.wait_until(lambda: False, 0.1)

    def take_charge(self, *, full_speed: bool = False) -> None:
        """From here on this client gives the operator heartbeat, which a real arm's contract asks for; and, if
        `full_speed`, the permission to move faster than the reduced speed."""
        self._in_charge, self._full_speed = True, full_speed
        if not self._heart:
            self._heart = self.node.create_timer(qos.HEARTBEAT_PERIOD_S, self._beat)

    def leave_charge(self) -> None:
        """No more heartbeats."""
        self._in_charge = False  # the timer stays: it belongs to the spinning thread

    def _beat(self) -> None:
        if self._in_charge:
            self.heartbeat_at_s = time.monotonic()
            self._heartbeats.publish(Empty())
            if self._full_speed:
                self._reduced.publish(Bool(data=False))

    def begin_interrupt(self) -> None:
        """By service, without waiting for the reply."""
        self._client(Trigger, "interrupt").call_async(Trigger.Request())

    def interrupt_topic(self) -> None:
        self._interrupts.publish(Empty())

    def interrupt(self, timeout_s: float = 2.0) -> None:
        """By topic, repeated until the supervisor's state shows a latched stop.

        Returns when no copy is on its way any more: one that came after the next rearm would undo it."""
        deadline_s = time.monotonic() + timeout_s
        copies = 0
        while time.monotonic() < deadline_s:
            self.interrupt_topic()
            copies += 1
            if self.wait_until(lambda: self.state is not None and self.state.latched, INTERRUPT_PERIOD_S):
                self._interrupts.wait_for_all_acked(Duration(seconds=INTERRUPT_PERIOD_S))
                if copies > 1:  # received by all, but perhaps not looked at yet
                    self.wait_until(lambda: False, 2 * INTERRUPT_PERIOD_S)
                return
        raise Unreachable(
            f"no supervisor showed the stop within {timeout_s:g} s. The arm controller listens to the same topic and "
            "may have stopped the arm; if it moves on, use the robot's own stop"
        )

    def set_parameters(self, node: str, **values: Any) -> None:
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        )
        for outcome in self.call(SetParameters, f"{node}/set_parameters", request).results:
            if not outcome.successful:
                raise CliError(f"{node}: {outcome.reason}")

    # ------------------------------------------------------------------------------------------ nodes

    def node_states(self, names: Sequence[str] = CORE_NODES, timeout_s: float = 1.0) -> dict[str, str]:
        """Lifecycle state of each node; "absent" where nobody answers.

        A node that does not answer is asked again: an answer that leaves before the two have found each other in both
        directions is lost."""
        deadline_s = time.monotonic() + timeout_s
        states = dict.fromkeys(names, "absent")
        while waiting := [name for name in names if states[name] == "absent"]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0.0:
                break
            states |= self._ask_states(waiting, min(left_s, STATE_ANSWER_S))
        return states

    def _ask_states(self, names: Sequence[str], timeout_s: float) -> dict[str, str]:
        """Asked once, all at the same time: the states of those that answered."""
        clients = {name: self._client(GetState, f"{name}/get_state") for name in names}
        asked: dict[str, Any] = {}

        def answered() -> bool:
            for name, client in clients.items():
                if name not in asked and client.service_is_ready():
                    asked[name] = client.call_async(GetState.Request())
            return len(asked) == len(clients) and all(future.done() for future in asked.values())

        self.wait_until(answered, timeout_s)
        for name, future in asked.items():
            if not future.done():
                clients[name].remove_pending_request(future)
        return {name: future.result().current_state.label for name, future in asked.items() if future.done()}

    def wait_active(
        self,
        names: Sequence[str],
        timeout_s: float,
        progress: Callable[[dict[str, str]], None] = lambda states: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Until every node is active. `check` may raise, when waiting has become pointless."""
        deadline_s = time.monotonic() + timeout_s
        states = dict.fromkeys(names, "absent")
        while True:
            check()
            waiting = [name for name in names if states[name] != "active"]
            for name, health in list(self.health.items()):
                # An active node may have late ticks while the others start: that is no refusal.
                if name in waiting and health.level >= 2 and not health.message.startswith("active"):
                    raise CliError(f"node {name} does not start: {health.message}")
            states |= self.node_states(waiting, timeout_s=0.25)
            progress(states)
            if all(state == "active" for state in states.values()):
                return
            if time.monotonic() > deadline_s:
                shown = ", ".join(f"{name} is {state}" for name, state in states.items() if state != "active")
                raise Unreachable(f"the graph was not ready within {timeout_s:g} s: {shown}")

    def sim_outcome(self) -> dict[str, Any]:
        """The world's own verdict; operators and benchmarks only."""
        return self._sim("sim/outcome")

    def sim_reset(self, seed: int, family: str = "") -> dict[str, Any]:
        self.set_parameters("sim", seed=seed, family=family)
        return self._sim("sim/reset")

    def _sim(self, service: str) -> dict[str, Any]:
        message = self.trigger(service, timeout_s=10.0).message
        try:
            verdict = json.loads(message)
        except json.JSONDecodeError:
            raise CliError(message) from None
        return dict(verdict)
