"""`vla bench`: what the live graph does, measured from outside it while the policy works."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_ros import paths
from vla_ros.cli.client import CORE_NODES, GraphClient
from vla_ros.cli.live import LiveGraph, Recorder, Stream, percentiles, stream_violations
from vla_ros.cli.report import CliError, Unreachable
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.joints import JointStateReader
from vla_ros.msg import SafeCommand, SafetyState
from vla_ros.nodes.conversions import joint_sample

Say = Callable[[str], None]
PATHS = ("service", "topic")
MOVING_M_S = 0.03  # an interrupt counts when the tool is commanded faster than this
PHASE_MAX_S = 1.2  # random delay after motion began: reaching, closing and lifting are all hit
REST_RAD_S = 0.01  # safety.md section 4: standstill
MOTION_TIMEOUT_S = 8.0
STOP_TIMEOUT_S = 2.0
ATTEMPTS_PER_SAMPLE = 6  # the phase may fall where the arm pauses: another try
LOOP_SECONDS = 30.0
MOTION_SECONDS = 12.0  # of one instruction during the loop benchmark


def starting(say: Say) -> Callable[[dict[str, str]], None]:
    """Progress of a graph that starts, one line for each node more."""
    seen: list[int] = []

    def progress(states: dict[str, str]) -> None:
        active = sum(state == "active" for state in states.values())
        if not seen or seen[-1] != active:
            seen.append(active)
            say(f"{active} of {len(states)} nodes active")

    return progress


class Speedometer:
    """Measured joint speed, from joint states."""

    def __init__(self, client: GraphClient, contract: Contract) -> None:
        self._reader = JointStateReader(contract)
        self._lock = threading.Lock()
        self._samples: list[tuple[float, float]] = []  # steady time of receipt, largest joint speed [rad/s]
        client.subscribe(JointState, contract.arm.joint_state_topic, "joint_states", self._on_joints)

    def _on_joints(self, message: JointState) -> None:
        now_s = time.monotonic()
        sample = joint_sample(message, self._reader, now_s)
        with self._lock:
            self._samples.append((now_s, float(np.abs(sample.qd_rad_s).max())))
            del self._samples[:-2000]

    def rest_after_s(self, event_s: float) -> float | None:
        """From the event until measured speed stays below `REST_RAD_S`; None while it does not."""
        with self._lock:
            after = [(t, v) for t, v in self._samples if t >= event_s]
        moving = [t for t, v in after if v >= REST_RAD_S]
        if not after or after[-1][0] - (moving[-1] if moving else event_s) < 0.1:
            return None
        return (moving[-1] if moving else event_s) - event_s


def stop(n: int, *, robot: str, policy: str, seed: int, say: Say) -> dict[str, Any]:
    """Interrupts by service and by topic at random phases of real motion, n of each."""
    contract = contracts.load(robot)
    rng = random.Random(seed)
    react: dict[str, list[float]] = {path: [] for path in PATHS}
    rest: dict[str, list[float]] = {path: [] for path in PATHS}
    violations: list[str] = []
    with LiveGraph({"robot": robot, "seed": str(seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        recorder, speed = Recorder(client), Speedometer(client, contract)
        client.wait_for_service(Trigger, "interrupt")
        before = client.wait_until(lambda: client.state, 5.0, "no safety_state from the supervisor")
        for k in range(2 * n):
            path = PATHS[k % 2]
            for _ in range(ATTEMPTS_PER_SAMPLE):
                graph.check()
                sample = _one_stop(client, recorder, speed, path, seed + k, rng)
                if sample is not None:
                    break
            else:
                raise CliError(
                    f"no motion to interrupt in {ATTEMPTS_PER_SAMPLE} attempts: does the policy move the arm?"
                )
            react[path].append(sample[0])
            rest[path].append(sample[1])
            violations += stream_violations(recorder.take()[0], contract)
            say(
                f"{k + 1}/{2 * n} by {path}: first stop command after {sample[0] * 1e3:.1f} ms, "
                f"at rest after {sample[1] * 1e3:.0f} ms"
            )
        after = client.state
        latency_ms = client.policy.latency_p50 * 1e3 if client.policy is not None else 0.0
    facts: dict[str, Any] = {
        path: {
            "n": len(react[path]),
            "ok": sum(r <= 0.030 for r in react[path]),
            "react_ms": percentiles(react[path]),
            "rest_ms": percentiles(rest[path]),
        }
        for path in PATHS
    }
    pooled = [r for path in PATHS for r in react[path]]
    return {
        "n": len(pooled),
        "react_ms": percentiles(pooled),
        "rest_ms": percentiles([r for path in PATHS for r in rest[path]]),
        **facts,
        "violations": len(violations),
        "violation_details": violations[:10],
        "policy_latency_p50_ms": round(latency_ms, 2),
        "late_ticks": after.late_ticks - before.late_ticks if after is not None else None,
        "measured": "from just before the call or publish in this process to the receipt here of the first SafeCommand "
        "in mode STOP, which begins the planned ramp",
    }


def _one_stop(
    client: GraphClient, recorder: Recorder, speed: Speedometer, path: str, seed: int, rng: random.Random
) -> tuple[float, float] | None:
    """React and rest time [s], or None when the arm did not move at the drawn instant."""
    _fresh_motion(client, seed)
    moving_until_s = time.monotonic() + rng.uniform(0.0, PHASE_MAX_S)
    client.wait_until(lambda: time.monotonic() >= moving_until_s, PHASE_MAX_S + 0.1)
    state = client.state
    if state is None or state.tool_speed < MOVING_M_S or state.severity >= SafetyState.SEVERITY_STOP:
        client.interrupt()
        return None
    recorder.restart()
    event_s = time.monotonic()
    if path == "topic":
        client.interrupt_topic()
    else:
        client.begin_interrupt()
    stopped_s = client.wait_until(
        lambda: _first_stop(recorder), STOP_TIMEOUT_S, "no SafeCommand in mode STOP after an interrupt"
    )
    rest_s = client.wait_until(lambda: speed.rest_after_s(event_s), STOP_TIMEOUT_S, "the arm did not come to rest")
    return stopped_s - event_s, rest_s


def _first_stop(recorder: Recorder) -> float | None:
    with recorder.lock:
        stream: Stream = recorder.stream
        return next(
            (t for t, mode in zip(stream.received_s, stream.mode, strict=False) if mode == SafeCommand.MODE_STOP), None
        )


def _fresh_motion(client: GraphClient, seed: int) -> None:
    """A new scene, a new instruction, and the arm on its way."""
    client.interrupt()
    drawn = client.sim_reset(seed)
    rearmed = client.rearm()
    if not rearmed.success:
        raise CliError(f"rearm was refused: {rearmed.message}")
    answer = client.instruct(str(drawn["instruction"]))
    if not answer.accepted:
        raise CliError(f"the simulator's own sentence was refused: {answer.reason}")
    try:
        client.wait_until(
            lambda: client.state is not None and client.state.tool_speed > MOVING_M_S,
            MOTION_TIMEOUT_S,
            "the arm did not begin to move",
        )
    except Unreachable as error:
        shown = f"phase {client.state.phase}, reason {client.state.reason!r}" if client.state else "no state"
        raise CliError(f"{error} ({shown})") from None


def loop(seconds: float, *, robot: str, policy: str, seed: int, say: Say) -> dict[str, Any]:
    """Control loops and memory while the policy infers and the arm moves."""
    with LiveGraph({"robot": robot, "seed": str(seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        _fresh_motion(client, seed)
        before = {
            name: dict(client.health[name].values) for name in ("supervisor", "arm_controller") if name in client.health
        }
        end_s, round_s, k = time.monotonic() + seconds, time.monotonic(), 0
        while time.monotonic() < end_s:
            graph.check()
            state = client.state
            ended = state is not None and state.phase in ("done", "idle", "stopped")
            if ended or time.monotonic() - round_s > MOTION_SECONDS:
                k, round_s = k + 1, time.monotonic()
                _fresh_motion(client, seed + k)
                say(f"{end_s - round_s:.0f} s left, {k} tasks so far")
            client.wait_until(lambda: False, 0.2)
        client.wait_until(lambda: False, 1.2)  # the diagnostics of the last second
        health = {name: dict(h.values) for name, h in client.health.items()}
        latency = client.policy
    rss = {name: float(health[name]["rss_mb"]) for name in CORE_NODES if name in health}
    loops = {
        name: _loop_facts(health[name], before.get(name, {}))
        for name in ("supervisor", "arm_controller")
        if name in health
    }
    return {
        "seconds": seconds,
        "loops": loops,
        "late_share": max((facts["late_share"] for facts in loops.values()), default=1.0),
        "rss_mb": rss,
        "rss_total_mb": round(sum(rss.values()), 1),
        "sim": {key: health.get("sim", {}).get(key, "") for key in ("real_time_factor", "rss_mb")},
        "policy_latency_ms": {"p50": round(latency.latency_p50 * 1e3, 2), "p99": round(latency.latency_p99 * 1e3, 2)}
        if latency
        else {},
    }


def _loop_facts(after: dict[str, str], before: dict[str, str]) -> dict[str, Any]:
    ticks = int(after["ticks"]) - int(before.get("ticks", 0))
    late = int(after["late_ticks"]) - int(before.get("late_ticks", 0))
    return {
        "ticks": ticks,
        "late_ticks": late,
        "late_share": round(late / ticks, 5) if ticks else 1.0,
        "rate_hz": float(after["rate_hz"]),
        "realtime_priority": after["realtime_priority"] == "True",
        **{key: float(after[key]) for key in ("delay_p50_ms", "delay_p99_ms", "delay_max_ms", "busy_p99_ms")},
    }


def policy_latency(n: int, *, robot: str, policy: str) -> dict[str, Any]:
    """Time of one chunk in process, on synthetic images; one thread, as the node runs it."""
    from vla_ros.core.types import Observation
    from vla_ros.policy.runtime import load

    contract = contracts.load(robot)
    runtime = load(paths.policy_folder(policy), contract)
    rng = np.random.default_rng(0)
    joints = contract.n_joints
    taken: list[float] = []
    for k in range(n + 5):
        images = {c.name: rng.integers(0, 255, (c.policy_px, c.policy_px, 3), dtype=np.uint8) for c in contract.cameras}
        seen = Observation(
            k + 1, k + 1, contract.hash, images, contract.poses.ready_rad, np.zeros(joints), contract.gripper.open_m
        )
        started_s = time.monotonic()
        runtime.infer(seen, "pick up the red cube", rng)
        taken.append(time.monotonic() - started_s)
    return {
        "n": n,
        "latency_ms": percentiles(taken[5:]),
        "precision": runtime.precision,
        "checkpoint": runtime.checkpoint_hash,
    }
