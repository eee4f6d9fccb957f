"""What every node of the graph shares: start, lifecycle with autostart, guarded callbacks, diagnostics, clean exit.

A node is a shell: `configure` turns parameters into a pure object, callbacks convert and call it, loops publish.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import qos_policy_name_from_kind
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.core.errors import Invalid, VlaError
from vla_ros.core.process_health import RSS_MAX_MB, QosGate, require_memory
from vla_ros.core.types import require_finite
from vla_ros.nodes import qos, security
from vla_ros.nodes.conversions import ClockBridge
from vla_ros.nodes.figures import Threshold, judge, lateness_histogram
from vla_ros.nodes.loop import ControlLoop

if TYPE_CHECKING:
    from rclpy.executors import Executor

    from vla_ros.core.contract import Contract
    from vla_ros.nodes.desk import Desk

NAMESPACE = "vla"
LOG_PERIOD_S = 1.0  # house rule: at most one line a second per reason
DIAGNOSTICS_PERIOD_S = 1.0
NICE = -15  # asked for control processes; needs a privilege and is not insisted on
START_S = 10.0  # our choice: after configure, until when a publisher that does not fit is a fault of the start
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # sys/mman.h
LEAVE_TIMEOUT_S = 1.5  # fault E15: ramp first, gone within 2 s
GONE_S = 3.0  # our choice: whoever has not let go of everything this long after the ramp is ended all the same
LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
SWITCH_INTERVAL_S = 0.0005  # a control loop waits at most this long for the interpreter while a callback computes


class ShellNode(LifecycleNode):
    """Base of all nodes. Subclasses implement `configure`, `activate`, `deactivate`, `cleanup` and `health`.

    One executor thread runs every callback; threads of a subclass must be stopped in `deactivate`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, namespace=NAMESPACE)
        self.writer_id = secrets.randbits(63) | 1  # never 0
        self.failure = ""  # why the node is not doing its work; shown in diagnostics
        self.counters: dict[str, int] = {}
        self.active = False
        self._logged_at_s: dict[str, float] = {}
        self._endpoints: list[Publisher | Subscription] = []
        self._thresholds: list[Threshold] = []
        self._qos_gate = QosGate()
        self._configured_at_s = -math.inf
        self.clocks = ClockBridge(self.ros_now_ns(), time.monotonic())
        self.parameter("contract", "panda", "robot contract: a shipped name, or the path of a .yaml file")
        self.parameter("rss_max_mb", RSS_MAX_MB, "the process ends itself when it needs more resident memory [MB]")
        self.parameter("autostart", True, "configure and activate without waiting for a lifecycle manager")
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.offered("diagnostics"))
        self.timer("diagnostics", DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

    # ------------------------------------------------------------------------------------------ for subclasses

    def configure(self, contract: Contract) -> None:
        """Parameters -> pure objects and endpoints. A VlaError here is the user's to fix and is shown as it is."""
        raise NotImplementedError

    def activate(self) -> None:
        """Start threads."""

    def deactivate(self) -> None:
        """Stop threads. Called at most once per `activate`, also when the process ends."""

    def cleanup(self) -> None:
        """Release what `configure` took, endpoints excepted: the runtime destroys those."""

    def close(self) -> None:
        """Let go of what was made in the constructor, before the node is destroyed."""

    def may_leave(self, asked_at_s: float, now_s: float) -> bool:
        """After SIGINT or SIGTERM: asked again until True, `LEAVE_TIMEOUT_S` at most. A moving arm is stopped first."""
        return True

    def health(self) -> Mapping[str, object]:
        """Figures for /diagnostics. They are for people, never an input to anything."""
        return {}

    # ------------------------------------------------------------------------------------------ tools

    def parameter(self, name: str, default: Any, description: str, *, read_only: bool = True) -> None:
        self.declare_parameter(name, default, ParameterDescriptor(description=description, read_only=read_only))

    def watch(self, *thresholds: Threshold) -> None:
        """Figures of `health` that colour the diagnostics; the parameters say from which value on."""
        for t in thresholds:
            self.parameter(f"warn.{t.figure}", t.warn, f"diagnostics warn when {t.figure} is not below this")
            self.parameter(f"error.{t.figure}", t.error, f"diagnostics show an error when {t.figure} is not below this")
        self._thresholds += [
            Threshold(t.figure, float(self.value(f"warn.{t.figure}")), float(self.value(f"error.{t.figure}")))
            for t in thresholds
        ]

    def value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def ros_now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def publisher(self, kind: type, topic: str, stream: str) -> Publisher:
        made = self.create_publisher(kind, topic, qos.offered(stream))
        self._endpoints.append(made)
        return made

    def subscribe(self, kind: type, topic: str, stream: str, callback: Callable[[Any], None]) -> Subscription:
        made = self.create_subscription(
            kind, topic, self.guarded(topic, callback), qos.requested(stream), event_callbacks=self._mismatch(topic)
        )
        self._endpoints.append(made)
        return made

    def subscribe_raw(self, kind: type, topic: str, stream: str, callback: Callable[[bytes], None]) -> Subscription:
        """Serialised messages: of a fast stream only those that are looked at need to be decoded."""
        made = self.create_subscription(
            kind,
            topic,
            self.guarded(topic, callback),
            qos.requested(stream),
            raw=True,
            event_callbacks=self._mismatch(topic),
        )
        self._endpoints.append(made)
        return made

    def _mismatch(self, topic: str) -> SubscriptionEventCallbacks:
        """Fault E7: a publisher whose QoS does not satisfy ours is never heard. At the start the node refuses to work
        with it; later it is counted, for whoever comes then was not part of what was started.

        Of subscribers that ask too much of us nothing is made: anybody could stop an arm by listening."""

        def note(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
            self._qos_gate.note(topic, policy)
            self.count(f"incompatible QoS {topic}")
            self.log_slowly(f"QoS {topic}", f"{topic}: a publisher does not offer what is asked for ({policy})")
            if time.monotonic() - self._configured_at_s <= START_S:
                try:
                    self._qos_gate.require()
                except Invalid as error:
                    self.fail(str(error))

        return SubscriptionEventCallbacks(incompatible_qos=note)

    def timer(self, name: str, period_s: float, callback: Callable[[], None]) -> None:
        call = self.guarded(name, callback)
        self.create_timer(period_s, lambda: call())  # rclpy hands a TimerInfo to callables that would take one

    def serve(
        self,
        kind: type,
        name: str,
        handler: Callable[[Any], Any],
        refuse: Callable[[str], Any],
        desk: Desk | None = None,
    ) -> None:
        """A service. `handler(request)` answers, `refuse(reason)` answers when it raises. At a desk it may block."""

        def run(request: Any, response: Any) -> Any:
            try:
                return handler(request)
            except VlaError as error:
                return refuse(str(error))
            except Exception as error:  # noqa: BLE001 fault E14
                self.fail(f"{name}: {type(error).__name__}: {error}", traceback.format_exc())
                return refuse(self.failure)

        if desk is not None:
            desk.serve(kind, name, run)
        else:
            self.create_service(kind, name, run)

    def control_loop(self, tick: Callable[[float], None], rate_hz: float) -> ControlLoop:
        return ControlLoop(f"{self.get_name()}_loop", 1.0 / rate_hz, tick, self._loop_failed)

    def count(self, what: str, n: int = 1) -> None:
        self.counters[what] = self.counters.get(what, 0) + n

    def log_slowly(self, reason: str, text: str) -> None:
        """A warning, at most once a second per reason."""
        now = time.monotonic()
        if now - self._logged_at_s.get(reason, -LOG_PERIOD_S) >= LOG_PERIOD_S:
            self._logged_at_s[reason] = now
            self.get_logger().warning(text)

    def guarded(self, where: str, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Bad input is counted and dropped. Anything else is a defect: logged once, then silence, seen as unhealthy."""

        def run(*args: Any) -> Any:
            if self.failure and where != "diagnostics":
                return None
            try:
                return callback(*args)
            except VlaError as error:
                self.count(f"rejected {where}")
                self.log_slowly(where, f"{where}: {error}")
            except Exception as error:  # noqa: BLE001 fault E14
                self.fail(f"{where}: {type(error).__name__}: {error}", traceback.format_exc())
            return None

        return run

    def fail(self, failure: str, details: str = "") -> None:
        """Fall silent. Whoever depends on this node notices by age."""
        if not self.failure:
            self.failure = failure
            self.get_logger().error(f"{failure}\n{details}" if details else failure)
            self._stop_work()

    def _loop_failed(self, error: BaseException) -> None:
        details = "".join(traceback.format_exception(error))
        self.fail(f"control loop: {type(error).__name__}: {error}", details)

    # ------------------------------------------------------------------------------------------ lifecycle

    def autostart(self) -> None:
        if self.value("autostart") and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.failure = ""
        self._qos_gate = QosGate()
        self._configured_at_s = time.monotonic()

        def work() -> None:
            require_finite("rss_max_mb", float(self.value("rss_max_mb")))
            for threshold in self._thresholds:
                threshold.validate()
            self.configure(contracts.load(str(self.value("contract"))))

        return self._transition("configure", work)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        def start() -> None:
            self._qos_gate.require()
            gc.collect()
            gc.freeze()  # what was loaded stays: a full collection must not walk it between two ticks
            self.activate()
            self.active = True

        return self._transition("activate", start)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("deactivate", self._stop_work)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("cleanup", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shutdown", self.release)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("error", self.release)

    def release(self) -> None:
        """Stop and let go of everything; may be called in any state."""
        self._stop_work()
        self._release()

    def _stop_work(self) -> None:
        if self.active:
            self.active = False
            self.deactivate()

    def _release(self) -> None:
        self.cleanup()
        for endpoint in self._endpoints:
            (self.destroy_publisher if isinstance(endpoint, Publisher) else self.destroy_subscription)(endpoint)
        self._endpoints.clear()

    def _transition(self, name: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            work()
        except (VlaError, OSError) as error:
            self.failure = f"{name} refused: {error}"
            self.get_logger().error(self.failure)
            self._undo(name)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # noqa: BLE001 fault E14
            self.failure = f"{name} failed: {type(error).__name__}: {error}"
            self.get_logger().error(f"{self.failure}\n{traceback.format_exc()}")
            self._undo(name)
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"{name} done")
        return TransitionCallbackReturn.SUCCESS

    def _undo(self, transition: str) -> None:
        """After a refused configure nothing half-made may stay in the graph."""
        if transition == "configure":
            self._release()

    # ------------------------------------------------------------------------------------------ diagnostics

    def _publish_diagnostics(self) -> None:
        self.clocks.observe(time.monotonic(), self.ros_now_ns(), time.monotonic())
        self._check_memory()
        state = self._state_machine.current_state[1]
        values: dict[str, object] = {"state": state, "rss_mb": round(rss_mb(), 1), "pid": os.getpid(), **self.counters}
        if state == "active" and not self.failure:
            values |= self.health()
        level, worst = judge(self._thresholds, values)
        status = DiagnosticStatus(
            name=f"{self.get_name()}",
            hardware_id=str(self.value("contract")),
            level=DiagnosticStatus.ERROR if self.failure else LEVELS[level],
            message=self.failure or (f"{state}: {worst}" if worst else state),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _check_memory(self) -> None:
        """Fault E12: above its limit the process leaves, as after SIGTERM: a moving arm is stopped first."""
        try:
            require_memory(rss_mb(), float(self.value("rss_max_mb")))
        except Invalid as error:
            self.log_slowly("memory", f"leaving: {error}")
            signal.raise_signal(signal.SIGTERM)


def rss_mb() -> float:
    """Resident memory of this process [MB]."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def loop_health(loop: ControlLoop | None) -> dict[str, object]:
    if loop is None:
        return {}
    s = loop.stats()
    return {
        "rate_hz": f"{s.rate_hz:.2f}",
        "ticks": s.ticks,
        "late_ticks": s.late_ticks,
        "delay_p50_ms": f"{s.delay_p50_s * 1e3:.3f}",
        "delay_p99_ms": f"{s.delay_p99_s * 1e3:.3f}",
        "delay_max_ms": f"{s.delay_max_s * 1e3:.3f}",
        "busy_p99_ms": f"{s.busy_p99_s * 1e3:.3f}",
        "lateness_ms": lateness_histogram(s.lateness),
        "realtime_priority": loop.realtime,
    }


def make_executor() -> Executor:
    """The events executor costs a third of the default one; not every ROS release has it."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def prepare_process(*, control: bool = False, shared_memory: bool = False) -> None:
    """Before numpy's libraries start threads and before the first participant is made."""
    paths.set_ros_environment()
    if not shared_memory:
        paths.leave_shared_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if control:
        # A real-time priority is for the loop's own thread only (`loop.py`): without it ticks wait for the scheduler's
        # next slice, 4 ms each; with it for the executor too, messages were no longer delivered in time.
        with contextlib.suppress(OSError):  # an ordinary user may not; diagnostics show what the loops reach
            os.setpriority(os.PRIO_PROCESS, 0, min(os.getpriority(os.PRIO_PROCESS, 0), NICE))
        with contextlib.suppress(OSError):
            # Linux shares the processor out among sessions first; priorities count inside one only (sched(7)). Under
            # `vla launch` each node has its own session: without this the loops compete with all others as equals.
            Path("/proc/self/autogroup").write_text(str(NICE))
        lock_memory()


def lock_memory() -> None:
    """Pages that were used once stay: reading one back from a busy disk takes longer than a command may be late.

    Needs a privilege, or `ulimit -l unlimited`, and is not insisted on. Under a limit nothing is locked: a process that
    reaches it is refused memory that it needs."""
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, endless)
    except (OSError, ValueError):
        return
    mlockall = getattr(ctypes.CDLL(None), "mlockall", None)
    if mlockall is not None:
        mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)


def gone_within(seconds: float) -> None:
    """Ends this process in any case: a thread that waits for somebody who is no longer there must not keep it."""

    def end() -> None:
        threads = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
        os.write(2, f"error: not gone {seconds:g} s after it was asked to leave ({threads}): ended\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def run(make: Callable[[], ShellNode], *, control: bool = False, shared_memory: bool = False) -> None:
    """Body of every node's main(): spin until SIGINT or SIGTERM, then stop work, let go and leave.

    `shared_memory`: faster for large images, and whoever is killed in it stalls the others (docs/decisions.md)."""
    prepare_process(control=control, shared_memory=shared_memory)
    try:
        security.require(os.environ)
    except security.SecurityRefused as refusal:
        sys.exit(f"error: not started: {refusal}")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: stop.append(n))
    node: ShellNode | None = None
    executor: Executor | None = None
    try:
        try:
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = make()
        except Exception as error:
            reason = security.explain(error, os.environ)
            if reason is error:
                raise
            sys.exit(f"error: not started: {reason}")
        executor = make_executor()
        executor.add_node(node)
        node.autostart()
        while rclpy.ok() and not stop:  # EventsExecutor.spin() never returns
            executor.spin_once(timeout_sec=0.1)
        asked_at_s = now_s = time.monotonic()
        while rclpy.ok() and now_s - asked_at_s < LEAVE_TIMEOUT_S and not node.may_leave(asked_at_s, now_s):
            executor.spin_once(timeout_sec=0.01)
            now_s = time.monotonic()
    except ExternalShutdownException:
        stop.append(0)
    finally:
        gone_within(GONE_S)
        if node is not None:
            node.release()
            node.close()
            node.destroy_node()
        node = executor = None
        gc.unfreeze()  # the middleware frees its shared memory with the last handle, and handles sit in cycles
        gc.collect()
        rclpy.try_shutdown()
