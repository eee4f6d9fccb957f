"""Stops by every path at random phases of real motion, and false stops in normal work."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vla_ros.cli.live import MOVING_M_S, LiveGraph, Say, fresh_motion, starting
from vla_ros.cli.report import CliError
from vla_ros.cli.stop_paths import EXECUTE_S, PATHS, REST_RAD_S, Path, Rig
from vla_ros.cli.stream import markdown, percentiles, stream_violations
from vla_ros.core import contract as contracts
from vla_ros.core.rules import Reason
from vla_ros.msg import SafeCommand, SafetyState

PHASE_MAX_S = 1.2  # random delay after motion began: reaching, closing and lifting are all hit
STOP_TIMEOUT_S = 3.0
ATTEMPTS_PER_SAMPLE = 12  # the phase may fall where the arm pauses: another try; one that fails loses the whole run
OTHER_SCENE = 100_003  # between the seeds of two tries
IDLE_MAX = 5  # scenes in a row in which the arm does not begin to move
TASK_S = 15.0  # of normal work, then the next one
BETWEEN_S = 0.2
# A stop in normal work is founded, not false, where the arm was said to be held and the world agrees: something took
# this share of a joint's greatest torque from it, a choice. Carrying and pushing what lies on the table take a tenth.
HELD_REASONS, HELD_SHARE = (Reason.TRACKING.value, Reason.CONTACT.value), 0.5
EVIDENCE_FROM_S = 0.3  # what moves later than this after the event is kept for an outlier

MEASURED = (
    "react: from just before the event in this process (for heartbeats: from the last one) to the receipt, by the "
    "middleware of this process, of the first SafeCommand that no longer follows the chunk (mode STOP or HOLD), which "
    "begins the planned ramp; "
    "supervisor_killed: to the arm controller's own latch, 30 ms after it begins to brake. rest: to the last joint "
    "state at or above 0.01 rad/s, for joint_states of the commands. n, react_ms and rest_ms without a path: the "
    "operator's interrupts and cancels together"
)


@dataclass
class Trial:
    react_s: float
    rest_s: float | None  # None: it went on before it stood
    in_inference: bool
    ok: bool  # reacted within the bar, and came to rest or went on as it should
    outlier: dict[str, Any] | None = None


@dataclass
class Work:
    """What normal work showed."""

    minutes: float = 0.0
    tasks: int = 0
    stops: list[str] = field(default_factory=list)  # reasons
    founded: list[str] = field(default_factory=list)  # of stops of an arm that something held: not false
    holds: list[str] = field(default_factory=list)


def run(
    n: int, names: Sequence[str], work_minutes: float, *, robot: str, policy: str, seed: int, say: Say
) -> dict[str, Any]:
    """n trials by each path, in turn, then `work_minutes` of tasks that nobody disturbs."""
    contract = contracts.load(robot)
    rng = random.Random(seed)
    trials: dict[str, list[Trial]] = {name: [] for name in names}
    violations: list[str] = []
    arguments = {"robot": robot, "seed": str(seed), "policy": policy}
    if "heartbeat" in names:
        arguments["operator_heartbeat"] = "required"
    with LiveGraph(arguments) as graph:
        client = graph.start(starting(say))
        rig = Rig(graph, contract)
        if "heartbeat" in names:
            client.take_charge(full_speed=True)
        before = client.wait_until(lambda: client.state, 5.0, "no safety_state from the supervisor")
        for k in range(n * len(names)):
            name = names[k % len(names)]
            trial = _sample(rig, name, seed + k, rng)
            trials[name].append(trial)
            violations += stream_violations(rig.recorder.take()[0], contract)
            PATHS[name].restore(rig)
            rest = "went on" if trial.rest_s is None else f"at rest after {trial.rest_s * 1e3:.0f} ms"
            say(f"{k + 1}/{n * len(names)} by {name}: decelerates after {trial.react_s * 1e3:.1f} ms, {rest}")
        after = client.state
        latency_ms = client.policy.latency_p50 * 1e3 if client.policy is not None else 0.0
        work = _work(rig, work_minutes, seed + n * len(names), violations, say)
    operator = [t for name in names if PATHS[name].operator for t in trials[name]]
    same = after is not None and after.writer_id == before.writer_id
    return {
        "paths": {name: _facts(trials[name], PATHS[name]) for name in names},
        "n": len(operator),
        "react_ms": percentiles([t.react_s for t in operator]),
        "rest_ms": percentiles([t.rest_s for t in operator if t.rest_s is not None]),
        "false_stops": len(work.stops),
        "false_stop_reasons": work.stops,
        "founded_stop_reasons": work.founded,
        "false_holds": work.holds,
        "normal_work": {"minutes": round(work.minutes, 2), "tasks": work.tasks},
        "violations": len(violations),
        "violation_details": violations[:10],
        "outliers": [t.outlier for name in names for t in trials[name] if t.outlier is not None],
        "policy_latency_p50_ms": round(latency_ms, 2),
        "late_ticks": after.late_ticks - before.late_ticks if same and after is not None else None,
        "measured": MEASURED,
    }


def _facts(trials: Sequence[Trial], path: Path) -> dict[str, Any]:
    rested = [t.rest_s for t in trials if t.rest_s is not None]
    return {
        "n": len(trials),
        "ok": sum(t.ok for t in trials),
        "react_ms": percentiles([t.react_s for t in trials]),
        "rest_ms": percentiles(rested),
        "went_on": len(trials) - len(rested),
        "in_inference": sum(t.in_inference for t in trials),
        "bar_ms": {"react": path.react_s * 1e3, "rest": path.rest_s * 1e3},
    }


def _sample(rig: Rig, name: str, seed: int, rng: random.Random) -> Trial:
    """A stop in motion; another scene where the arm does not move, or pauses at the drawn instant."""
    path, why = PATHS[name], "the arm paused at the drawn instant"

    def execute(text: str) -> None:
        rig.goal = rig.client.execute(text, EXECUTE_S)

    for attempt in range(ATTEMPTS_PER_SAMPLE):
        rig.graph.check()
        try:
            fresh_motion(rig.client, seed + attempt * OTHER_SCENE, execute if path.by_execute else None)
        except CliError as error:
            why = str(error)
            continue
        trial = _trial(rig, name, seed, rng)
        if trial is not None:
            return trial
        path.restore(rig)
    raise CliError(f"no motion to stop by {name} in {ATTEMPTS_PER_SAMPLE} attempts; the last time: {why}")


def _trial(rig: Rig, name: str, seed: int, rng: random.Random) -> Trial | None:
    """One stop of an arm that moves, or None when it did not follow a chunk at the drawn instant."""
    path, client, recorder = PATHS[name], rig.client, rig.recorder
    client.wait_until(lambda: False, rng.uniform(0.0, PHASE_MAX_S))
    _await_inference(rig, rng)
    with recorder.lock:
        following = recorder.stream.mode[-1:] == [SafeCommand.MODE_MOVE]
    if not following or client.state is None or client.state.tool_speed < MOVING_M_S:
        return None
    recorder.restart()
    event_s = path.act(rig)
    reacted_s = client.wait_until(lambda: path.reacted(rig, event_s), STOP_TIMEOUT_S)
    if reacted_s is None:  # a failure, and counted as one
        outlier = _outlier(rig, name, seed, event_s, STOP_TIMEOUT_S, None)
        return Trial(STOP_TIMEOUT_S, STOP_TIMEOUT_S, recorder.in_inference(event_s), False, outlier)
    if not path.by_execute and client.state is not None and client.state.phase == "done":
        return None  # the task ended by itself before the event had an effect
    stood = client.wait_until(
        lambda: path.rested(rig, event_s) is not None or (path.goes_on and rig.moves_on_after(reacted_s)),
        STOP_TIMEOUT_S,
    )
    react_s, rest_s, outlier = reacted_s - event_s, path.rested(rig, event_s), None
    if path.goes_on and rig.moves_on_after(reacted_s):
        rest_s = None
    elif not stood:
        rest_s = STOP_TIMEOUT_S
    ok = react_s <= path.react_s and bool(stood)
    if react_s > path.react_s or (rest_s is not None and rest_s > path.rest_s):
        outlier = _outlier(rig, name, seed, event_s, react_s, rest_s)
    return Trial(react_s, rest_s, recorder.in_inference(event_s), ok, outlier)


def _await_inference(rig: Rig, rng: random.Random) -> None:
    """Until the policy computes, as far as its pace tells: the event is to find it busy."""
    recorder = rig.recorder
    with recorder.lock:
        if not recorder.inference_s:
            return
        last_s, taken_s = recorder.inferred_at_s[-1], recorder.inference_s[-1]
    due_s = last_s - taken_s + 1.0 / rig.contract.rates.policy_hz + rng.uniform(0.0, taken_s)
    time.sleep(min(max(due_s - time.monotonic(), 0.0), 1.0 / rig.contract.rates.policy_hz))


def _outlier(rig: Rig, name: str, seed: int, event_s: float, react_s: float, rest_s: float | None) -> dict[str, Any]:
    """Enough to explain it: what moved after the ramp should have ended, and what was commanded then."""
    with rig.recorder.lock:
        stream = rig.recorder.stream
        moving = [t for t, qd in zip(stream.received_s, stream.qd_rad_s, strict=False) if abs(qd).max() >= REST_RAD_S]
        grips = stream.gripper_m[:1] + stream.gripper_m[-1:]
    return {
        "path": name,
        "seed": seed,
        "react_ms": round(react_s * 1e3, 2),
        "rest_ms": None if rest_s is None else round(rest_s * 1e3, 1),
        "command_rest_ms": round((moving[-1] - event_s) * 1e3, 1) if moving else None,
        "gripper_commanded_m": [round(width, 4) for width in grips],
        "measured": rig.speed.evidence(event_s, EVIDENCE_FROM_S),
    }


def _work(rig: Rig, minutes: float, seed: int, violations: list[str], say: Say) -> Work:
    """Tasks one after another, each undisturbed until it ends. Stops and holds in them are nobody's wish."""
    work, client = Work(), rig.client
    started_s, idle = time.monotonic(), 0
    while time.monotonic() - started_s < 60.0 * minutes:
        rig.graph.check()
        work.tasks += 1
        try:
            fresh_motion(client, seed + work.tasks)
            idle = 0
        except CliError:
            idle += 1
            if idle == IDLE_MAX:
                raise
            continue
        task_s, state, seen = time.monotonic(), client.state, (0, "")
        while time.monotonic() - task_s < TASK_S and state is not None and state.phase != "done":
            now = (state.severity, state.reason)
            if now != seen and state.severity >= SafetyState.SEVERITY_STOP:
                resisted = client.sim_outcome()["resisted"]
                held = state.reason in HELD_REASONS and resisted >= HELD_SHARE
                (work.founded if held else work.stops).append(state.reason)
                say(f"{'founded' if held else 'false'} stop: {state.reason}, scene {seed + work.tasks}, {resisted:.0%}")
                break
            if now != seen and state.severity == SafetyState.SEVERITY_HOLD and state.reason != "instruction_changed":
                work.holds.append(state.reason)
            seen = now
            client.wait_until(lambda state=state: client.state is not state, BETWEEN_S)
            state = client.state
        violations += stream_violations(rig.recorder.take()[0], rig.contract)
        work.minutes = (time.monotonic() - started_s) / 60.0
        say(f"{work.minutes:.1f} of {minutes:g} min of normal work, {len(work.stops)} false stops")
    return work


def table(facts: dict[str, Any]) -> str:
    """Markdown."""
    rows = []
    for name, path in facts["paths"].items():
        react, rest, bar = path["react_ms"], path["rest_ms"], path["bar_ms"]
        stood = f"{rest['p50']} / {rest['p99']} / {rest['max']}" if path["went_on"] < path["n"] else "went on"
        rows.append(
            (name, f"{path['ok']}/{path['n']}", f"{react['p50']} / {react['p99']} / {react['max']}", stood,
             f"{bar['react']:g} / {bar['rest']:g}")
        )  # fmt: skip
    head = ("path", "in time", "react p50 / p99 / max [ms]", "rest p50 / p99 / max [ms]", "bar react / rest [ms]")
    work = facts["normal_work"]
    return markdown(head, rows) + (
        f"\n{facts['false_stops']} false stops in {work['minutes']} min of normal work ({work['tasks']} tasks; "
        f"{len(facts['founded_stop_reasons'])} stops of an arm that pressed on something), "
        f"{facts['violations']} violations of an invariant in the recorded commands.\n"
    )
