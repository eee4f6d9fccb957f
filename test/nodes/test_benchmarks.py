"""What the benchmarks make of a recorded stream: rest, violations, slopes, tables."""

import dataclasses
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from vla_ros.cli import bench_soak, bench_stop
from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveEpisode
from vla_ros.cli.stop_paths import PATHS, rest_after_s
from vla_ros.cli.stream import Recorder, Stream, markdown, stream_violations
from vla_ros.core import contract as contracts
from vla_ros.core.limits import MotionState, plan_stop
from vla_ros.msg import SafeCommand

pytestmark = pytest.mark.unit
PERIOD_S = 0.01


@pytest.fixture(scope="module")
def contract():
    return contracts.load("panda")


def braking(contract, ticks=60, writer=7, mode=SafeCommand.MODE_STOP):
    """A stream that brakes from 0.5 rad/s with the limits' own ramp and then stands."""
    n = contract.n_joints
    start = MotionState(contract.poses.ready_rad, np.full(n, 0.5), np.zeros(n))
    plan, stream = plan_stop(contract.limits, start), Stream()
    for k in range(ticks):
        state = plan.at(k * PERIOD_S)
        stream.received_s.append(100.0 + k * PERIOD_S)
        stream.at_ns.append(round((100.0 + k * PERIOD_S) * 1e9))
        stream.q_rad.append(state.q)
        stream.qd_rad_s.append(state.v)
        stream.gripper_m.append(0.04)
        stream.mode.append(mode)
        stream.sequence.append(k + 1)
        stream.writer_id.append(writer)
    return stream


def test_planned_stop_violates_nothing(contract):
    assert stream_violations(braking(contract), contract) == []


def test_streams_of_two_supervisors_are_judged_apart(contract):
    one, two = braking(contract), braking(contract, writer=8)  # the second counts and stamps from the beginning
    both = Stream(**{f.name: getattr(one, f.name) + getattr(two, f.name) for f in dataclasses.fields(Stream)})
    assert stream_violations(both, contract) == []
    both.writer_id = [7] * len(both.writer_id)
    assert "stamps do not increase" in stream_violations(both, contract)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda s: s.q_rad.__setitem__(50, s.q_rad[50] + 1e-3), "the command moved in STOP after its ramp"),
        (lambda s: s.gripper_m.__setitem__(40, 0.08), "the grip changed in STOP"),
        (lambda s: s.qd_rad_s.__setitem__(55, s.qd_rad_s[55] + 0.01), "the command started to move in STOP"),
        (lambda s: s.q_rad.__setitem__(3, s.q_rad[3] * np.nan), "a command is not finite"),
        (lambda s: s.qd_rad_s.__setitem__(5, s.qd_rad_s[5] + 0.3), "acceleration"),
        (lambda s: s.qd_rad_s.__setitem__(5, s.qd_rad_s[5] + 2.0), "velocity"),
        (lambda s: s.q_rad.__setitem__(5, s.q_rad[5] + 9.0), "position"),
    ],
)
def test_broken_promise_in_a_stream_is_found(contract, spoil, found):
    stream = braking(contract)
    spoil(stream)
    assert any(text.startswith(found) for text in stream_violations(stream, contract))


@pytest.mark.parametrize("silent_s, violates", [(0.45, False), (0.03, True)])
def test_a_stop_that_ended_while_the_supervisor_hung_is_no_leap(contract, silent_s, violates):
    """The next command stands where the arm controller has braked to; a pause that it does not notice allows none."""
    stream, first, last = braking(contract), 10, 55
    for field in dataclasses.fields(Stream):
        values = getattr(stream, field.name)
        setattr(stream, field.name, values[:first] + values[last:])
    later_ns = round(silent_s * 1e9) - (stream.at_ns[first] - stream.at_ns[first - 1])
    stream.at_ns[first:] = [t + later_ns for t in stream.at_ns[first:]]
    stream.sequence = list(range(1, len(stream.sequence) + 1))
    assert bool(stream_violations(stream, contract)) is violates


def test_a_stop_that_starts_anew_from_the_measured_state_is_judged_anew(contract):
    """A tracking fault (C5): the arm is elsewhere, so the command leaps there."""
    one, two = braking(contract), braking(contract)
    shift_ns = one.at_ns[20] - one.at_ns[0]
    for field in ("received_s", "q_rad", "qd_rad_s", "gripper_m", "mode", "writer_id"):
        setattr(one, field, getattr(one, field)[:20] + getattr(two, field))
    one.at_ns = one.at_ns[:20] + [t + shift_ns for t in two.at_ns]
    one.sequence = list(range(1, len(one.at_ns) + 1))
    assert any(text.startswith("acceleration") for text in stream_violations(one, contract))
    one.anew_ns = [one.at_ns[20]]
    assert stream_violations(one, contract) == []


def test_rest_is_the_last_moving_sample_once_the_arm_has_stood():
    moving = [(0.01 * k, 0.5) for k in range(1, 31)]
    still = [(0.30 + 0.01 * k, 0.001) for k in range(1, 20)]
    assert rest_after_s(0.0, moving) is None
    assert rest_after_s(0.0, moving + still[:5]) is None
    assert rest_after_s(0.0, moving + still) == pytest.approx(0.30)
    assert rest_after_s(0.0, []) is None


def test_every_path_of_the_issue_is_measured():
    assert set(PATHS) == {
        "service", "topic", "console", "new_instruction", "cancel", "heartbeat", "policy_killed", "supervisor_killed",
        "camera", "joint_states",
    }  # fmt: skip
    for path in PATHS.values():
        assert 0.0 < path.react_s < path.rest_s <= 1.0


def test_table_of_stops_counts_and_names_every_path():
    trial = bench_stop.Trial(0.004, 0.3, True, True)
    late = bench_stop.Trial(0.050, None, False, False)
    facts = {
        "paths": {name: bench_stop._facts([trial, late], path) for name, path in PATHS.items()},
        "false_stops": 0,
        "founded_stop_reasons": ["tracking"],
        "normal_work": {"minutes": 10.0, "tasks": 60},
        "violations": 0,
    }
    one = facts["paths"]["service"]
    assert (one["n"], one["ok"], one["went_on"], one["in_inference"]) == (2, 1, 1, 1)
    assert one["react_ms"]["max"] == 50.0 and one["rest_ms"]["max"] == 300.0
    text = bench_stop.table(facts)
    assert all(f"| {name} | 1/2 |" in text for name in PATHS)
    assert "0 false stops in 10.0 min" in text
    assert "1 stops of an arm that pressed on something" in text


def test_markdown_has_a_head_a_rule_and_a_line_for_each_row():
    assert markdown(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_memory_slope_leaves_the_warm_up_out():
    life = [(float(t), 100.0 + min(t, 60) + 0.5 * t / 60.0, 0, 0) for t in range(400)]
    assert bench_soak.slope_mb_min(life) == pytest.approx(0.5, abs=0.02)
    assert bench_soak.slope_mb_min(life[:90]) is None


def test_soak_draws_every_kind_of_event():
    assert {"work", "interrupt", "crash", "hang", "unplug", "rearm"} <= set(bench_soak.EVENTS)
    assert all(weight > 0 for _, weight in bench_soak.EVENTS.values())


class FakeRig:
    """An arm that follows a chunk, and whose answer to the event is given."""

    class client:
        state = type("State", (), {"tool_speed": 0.2, "phase": "moving", "severity": 0})
        wait_until = staticmethod(lambda condition, timeout_s, what="": condition())

    def __init__(self, contract):
        self.contract = contract
        self.recorder = Recorder(SimpleNamespace(subscribe=lambda *arguments: None, record=lambda *arguments: None))
        self.recorder.stream = braking(contract, mode=SafeCommand.MODE_MOVE)
        self.speed = SimpleNamespace(evidence=lambda event_s, from_s: [])


@pytest.mark.parametrize(
    ("reacted", "rested", "ok"),
    [(0.004, 0.3, True), (0.050, 0.3, False), (None, None, False), (0.004, None, False)],
    ids=["in time", "late", "never reacts", "never rests"],
)
def test_trial_that_fails_is_counted_and_not_repeated(contract, monkeypatch, reacted, rested, ok):
    path = dataclasses.replace(
        PATHS["service"],
        act=lambda rig: 50.0,
        reacted=lambda rig, event_s: None if reacted is None else event_s + reacted,
        rested=lambda rig, event_s: rested,
    )
    monkeypatch.setitem(PATHS, "service", path)
    trial = bench_stop._trial(FakeRig(contract), "service", 0, random.Random(0))
    assert trial.ok is ok
    assert (trial.outlier is None) is ok
    assert trial.rest_s == (rested if rested is not None else bench_stop.STOP_TIMEOUT_S)


def test_command_was_received_when_the_middleware_had_it_not_when_python_got_its_turn():
    now = SimpleNamespace(nanoseconds=1_000_000_000)
    client = SimpleNamespace(node=SimpleNamespace(get_clock=lambda: SimpleNamespace(now=lambda: now)))
    before_s = time.monotonic()
    received_s = GraphClient.received_s(client, {"received_timestamp": 600_000_000})
    assert before_s - 0.4 <= received_s <= time.monotonic() - 0.4
    assert GraphClient.received_s(client, {"received_timestamp": 0}) >= before_s  # a middleware that does not say


def test_arm_that_pauses_is_no_trial(contract):
    rig = FakeRig(contract)
    rig.recorder.stream = braking(contract, mode=SafeCommand.MODE_HOLD)
    assert bench_stop._trial(rig, "service", 0, random.Random(0)) is None


def test_ending_of_a_live_episode_tells_reason_and_world():
    """`arm_latched: command_timeout` was once lost behind where the cube lay."""
    stopped = LiveEpisode("lift it", outcome="stopped", reason="arm_latched: command_timeout", detail="on the table")
    assert stopped.ending == "stopped: arm_latched: command_timeout; on the table"
    assert LiveEpisode("lift it", outcome="refused", reason="unknown words").ending == "refused: unknown words"
    assert LiveEpisode("lift it", outcome="done", detail="lifted").ending == "done: lifted"
