"""The eight invariants of the safety specification (section 6) on every tick of random stories."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from core_invariants import CommandStream, Violation
from core_loop import Loop
from hypothesis import given, settings
from hypothesis import strategies as st
from script_loader import load_script
from stories import KINDS, STRANGE, FoldingStory, Story, play

from vla_ros.core.types import Chunk, Severity

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_story_breaks_an_invariant(kind: str, seed: int) -> None:
    assert not play(kind, seed, 500).violation


def test_joints_that_brake_one_after_the_other_do_not_take_the_tool_above_its_cap() -> None:
    # The cap was kept by the present speed and by the one with the accelerations taken back. In this story two joints
    # that take speed away come to rest 0.1 s before the others: 0.50002 m/s in tick 617, while the arm braked already.
    told = play("chunks", 1627159184, 620)
    assert told.ticks == 620 and not told.violation


def test_a_loop_that_stands_still_in_a_stop_does_not_go_on_with_its_ramp() -> None:
    # A clock that jumps by 3 s in tick 368, one tick after a stop began: 0.55 rad/s were still commanded afterwards.
    told = play("chunks", 4283195772, 420)
    assert told.ticks == 420 and not told.violation


def test_the_same_story_twice_gives_the_same_commands() -> None:
    streams = []
    for _ in range(2):
        story = Story(np.random.default_rng(7))
        story.arm()
        story.instruct()
        for _ in range(150):
            story.random_tick()
        streams.append(story.stream()[1])
    assert (streams[0] == streams[1]).all()


def test_stories_get_somewhere() -> None:
    told = play("chunks", 3, 500)
    assert told.ticks == 500 and told.accepted > 5 and sum(told.strange.values()) > 5
    story = FoldingStory(np.random.default_rng(1))
    story.arm()
    story.instruct()
    for _ in range(400):
        story.random_tick()
    assert np.ptp(story.stream()[1], axis=0).max() > 0.5


@pytest.mark.parametrize("kind", STRANGE)
def test_each_kind_of_strange_chunk_can_be_made_of_any_chunk_and_leaves_that_one_alone(kind: str) -> None:
    chunk, rng = Loop().make_chunk(instruction_id=1), np.random.default_rng(0)
    before, makes = chunk.data.copy(), [dataclasses.replace(chunk, **STRANGE[kind](chunk, rng)) for _ in range(5)]
    assert (chunk.data == before).all()
    assert all(isinstance(made, Chunk) for made in makes)


# What a broken supervisor would publish: (which invariant notices, how a decision is changed from tick 250 on).
BROKEN = {
    "not finite": (1, lambda d: _command(d, qd_rad_s=np.full(7, np.nan))),
    "outside": (2, lambda d: _command(d, q_rad=d.command.q_rad + 4.0)),
    "fast": (3, lambda d: _command(d, qd_rad_s=d.command.qd_rad_s + 1.1)),
    "step": (3, lambda d: _command(d, q_rad=d.command.q_rad + 0.05)),
    "jerk": (4, lambda d: _command(d, qd_rad_s=d.command.qd_rad_s + 0.01)),
    "unlatched": (5, lambda d: dataclasses.replace(d, severity=Severity.RUN)),
    "creeps in a stop": (6, lambda d: _command(d, q_rad=d.command.q_rad + 1e-9)),
    "cap": (7, lambda d: dataclasses.replace(d, speed_cap_m_s=0.01)),
}


def _command(decision, **changes):
    return dataclasses.replace(decision, command=dataclasses.replace(decision.command, **changes))


@pytest.mark.parametrize("number, change", BROKEN.values(), ids=BROKEN)
def test_each_invariant_notices_what_breaks_it(number: int, change, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(np.random.default_rng(0))
    story.arm()
    story.instruct()
    stopped = number in (5, 6)
    story.goal_p, story.speed_m_s = np.array([0.55, 0.3, 0.15]), 0.12
    story.run(1.0)
    if stopped:
        story.tick(interrupts=1)
        story.run(1.5)
    update = story.supervisor.update
    monkeypatch.setattr(story.supervisor, "update", lambda now_s, inputs: change(update(now_s, inputs)))
    with pytest.raises(Violation) as violation:
        story.run(1.5)
    assert violation.value.number == number


def test_a_chunk_from_before_a_fault_is_noticed() -> None:
    story = Story(np.random.default_rng(0))
    story.arm()
    story.instruct()
    story.run(0.5)
    story.invariants._forbidden_s = story.now_s + 1.0  # as if something had happened
    with pytest.raises(Violation) as violation:
        story.run(0.5)
    assert violation.value.number == 8


def test_a_clock_that_stands_may_not_move_the_arm() -> None:
    loop = Loop()
    loop.arm()
    stream, last = CommandStream(loop.contract), loop.decisions[-1]
    stream.take(1.0, last)
    stream.take(1.0, last)
    with pytest.raises(Violation):
        stream.take(1.0, _command(last, q_rad=last.command.q_rad + 1e-9))


# -- the benchmark that runs the same stories at full size ----------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/safety/invariants.py")


def test_the_benchmark_counts_what_it_was_asked_for_and_goes_on_where_it_was_stopped(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, report = tmp_path / "state.jsonl", tmp_path / "report.md"
    argv = ["--chunks", "30", "--ticks", "1200", "--seed", "5", "--workers", "1"]
    argv += ["--state", str(state), "--report", str(report)]
    assert script.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["violations"] == [] and result["seed"] == 5
    assert result["chunks"]["sent"] >= 30 and result["ticks"] >= 1200
    assert f"| {result['ticks']:,} |" in report.read_text()
    monkeypatch.setattr(script, "tell", None)  # nothing is left to tell
    assert script.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["ticks"] == result["ticks"]
    with pytest.raises(SystemExit):  # another run's state
        script.main([*argv, "--ticks", "99"])
    assert "--ticks" in capsys.readouterr().err


def test_the_benchmark_reports_a_violation_with_its_seed_and_fails(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core_invariants.RAMP_S", -1e9)  # a stop that may take no time at all
    assert script.main(["--chunks", "1", "--ticks", "2000", "--workers", "1"]) == 1
    told = json.loads(capsys.readouterr().out)["violations"]
    assert told and all("seed" in line and "invariant" in line for line in told)
