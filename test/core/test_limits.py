"""The limiter follows without breaking a bound; stops are planned (faults B4 and C1, invariants 1 to 4)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import feasible_state, panda
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ros.core.contract import JointLimits
from vla_ros.core.errors import Invalid
from vla_ros.core.limits import (
    LOOK_AHEAD_S,
    STOP_TIME_MAX_S,
    Limiter,
    MotionState,
    plan_move,
    plan_stop,
    stop_distance,
)

pytestmark = pytest.mark.unit
PANDA = panda().limits
N, DT = 7, panda().period_s
TIGHT = dataclasses.replace(PANDA, q_lo_rad=np.full(N, -0.3), q_hi_rad=np.full(N, 0.3))
BRISK = dataclasses.replace(
    TIGHT, v_max_rad_s=np.full(N, 2.0), a_max_rad_s2=np.full(N, 8.0), j_max_rad_s3=np.full(N, 400.0)
)


@settings(max_examples=40, deadline=None)
@given(
    limits=st.sampled_from([PANDA, TIGHT, BRISK]),
    seed=st.integers(0, 2**32 - 1),
    hold_ticks=st.sampled_from([1, 5, 40]),
    steps_s=st.lists(st.sampled_from([0.0005, 0.002, DT, 0.013, 0.02, 0.5]), min_size=1, max_size=6),
)
def test_no_request_from_any_feasible_state_breaks_a_bound_whatever_the_tick(
    limits: JointLimits, seed: int, hold_ticks: int, steps_s: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    limiter, state = Limiter(limits, DT), feasible_state(limits, rng)
    q_ref, v_ref = state.q, np.zeros(N)
    for k in range(150):
        if k % hold_ticks == 0:  # jumps, also far outside the limits
            q_ref, v_ref = rng.uniform(-4.0, 4.0, N), rng.normal(0.0, 2.0, N) * rng.integers(0, 2)
        dt = min(steps_s[k % len(steps_s)], 2.0 * DT)
        after = limiter.step(state, q_ref, v_ref, steps_s[k % len(steps_s)])
        assert np.isfinite(after.q).all()
        assert (after.q >= limits.q_lo_rad).all() and (after.q <= limits.q_hi_rad).all()
        assert (np.abs(after.v) <= limits.v_max_rad_s + 1e-6).all()
        assert (np.abs(after.a) <= limits.a_max_rad_s2 + 1e-9).all()
        assert (np.abs(after.a - state.a) <= limits.j_max_rad_s3 * dt + 1e-9).all()
        assert (np.abs(after.q - state.q) <= limits.v_max_rad_s * dt + 1e-9).all()
        state = after


@pytest.mark.parametrize("a_share, j_share", [(1.0, 1.0), (1.0, 0.3), (0.3, 1.0), (3.0, 1.0)])
def test_no_reference_takes_the_arm_farther_from_rest_than_the_longest_stop(a_share: float, j_share: float) -> None:
    """Also where the limits of another arm give a longer stop from full speed: it is then not reached."""
    limits = dataclasses.replace(
        PANDA, a_max_rad_s2=a_share * PANDA.a_max_rad_s2, j_max_rad_s3=j_share * PANDA.j_max_rad_s3
    )
    rng, limiter, state = np.random.default_rng(3), Limiter(limits, DT), MotionState.at_rest(panda().poses.ready_rad)
    longest = 0.0
    for _ in range(400):
        if rng.random() < 0.05:
            q_ref, v_ref = state.q + rng.uniform(-1.5, 1.5, N), rng.normal(0.0, 1.0, N) * rng.integers(0, 2)
        elif not state.moving:
            q_ref, v_ref = state.q + 1.0, np.zeros(N)
        state = limiter.step(state, q_ref, v_ref, float(rng.choice([0.0005, 0.003, DT, DT, 0.02])))
        longest = max(longest, plan_stop(limits, state).duration_s)
    assert 0.9 * STOP_TIME_MAX_S < longest <= STOP_TIME_MAX_S + 1e-6


@settings(deadline=None)
@given(bad=st.sampled_from([np.nan, np.inf, -np.inf]), joint=st.integers(0, N - 1), which=st.sampled_from(["q", "v"]))
def test_a_reference_that_is_not_finite_is_refused(bad: float, joint: int, which: str) -> None:
    q, v = np.zeros(N), np.zeros(N)
    (q if which == "q" else v)[joint] = bad
    with pytest.raises(Invalid):
        Limiter(PANDA, DT).step(MotionState.at_rest(panda().poses.ready_rad), q, v, DT)


@pytest.mark.parametrize("dt", [0.0, -0.01, float("nan")])
def test_a_clock_that_stands_still_or_runs_backwards_is_refused(dt: float) -> None:
    state = MotionState.at_rest(panda().poses.ready_rad)
    with pytest.raises(Invalid) as error:
        Limiter(PANDA, DT).step(state, state.q, state.v, dt)
    assert error.value.reason == "clock"


def follow(reference, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, q, a) of joint 1 from the ready pose; `reference(t)` gives (offset, speed) of all joints."""
    limiter, start = Limiter(PANDA, DT), panda().poses.ready_rad
    state, rows = MotionState.at_rest(start), []
    for k in range(round(seconds / DT)):
        t = (k + 1) * DT
        offset, speed = reference(t + LOOK_AHEAD_S)
        state = limiter.step(state, start + offset, np.full(N, speed), DT)
        rows.append((t, state.q[0] - start[0], state.a[0]))
    return tuple(np.array(rows).T)


@pytest.mark.parametrize("size, settle_s", [(0.3, 0.60), (0.05, 0.30), (0.01, 0.18)])
def test_a_step_settles_fast_and_does_not_overshoot(size: float, settle_s: float) -> None:
    t, q, _ = follow(lambda _: (size, 0.0), 2.0)
    assert q.max() <= size + 0.0015
    assert t[np.abs(q - size) > 0.003].max() <= settle_s
    assert np.abs(q[-50:] - size).max() < 1e-5  # and does not ring


@pytest.mark.parametrize("hertz, size", [(0.3, 0.3), (0.5, 0.2), (1.0, 0.08)])
def test_a_moving_reference_is_followed_without_lag(hertz: float, size: float) -> None:
    w = 2.0 * np.pi * hertz
    t, q, _ = follow(lambda t: (size * np.sin(w * t), size * w * np.cos(w * t)), 4.0)
    late = t > 1.5
    assert np.abs(q - size * np.sin(w * t))[late].max() < 0.006


def test_a_target_that_jumps_every_50_ms_is_followed_without_ringing_afterwards() -> None:
    t, q, a = follow(lambda t: (0.2 * (int(t / 0.05) % 2) if t < 2.0 else 0.1, 0.0), 4.0)
    assert np.abs(q[t > 3.5] - 0.1).max() < 1e-4 and np.abs(a[t > 3.5]).max() < 0.01


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_planned_stop_ends_at_rest_inside_its_predicted_distance_and_never_gains_speed_it_had_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = feasible_state(PANDA, rng)
    plan = plan_stop(PANDA, state)
    A, J = PANDA.a_max_rad_s2, PANDA.j_max_rad_s3
    path = [plan.at(t) for t in np.linspace(0.0, plan.duration_s, 40)]
    q = np.array([s.q for s in path])
    assert (q.max(axis=0) <= state.q + stop_distance(state.v, state.a, A, J) + 1e-9).all()
    assert (q.min(axis=0) >= state.q - stop_distance(-state.v, -state.a, A, J) - 1e-9).all()
    assert (np.abs([s.v for s in path]) <= PANDA.v_max_rad_s + 1e-9).all()
    assert (np.abs([s.a for s in path]) <= A + 1e-9).all()
    end = plan.at(plan.duration_s + 1.0)
    assert not end.moving and (end.q == plan.at(1e9).q).all()
    assert plan.duration_s <= 0.85  # a speed against a full acceleration has to turn first


def test_the_stop_from_cruise_takes_300_ms_and_from_the_worst_state_400_ms() -> None:
    at = lambda v, a: MotionState(np.zeros(N), np.full(N, v), np.full(N, a))  # noqa: E731
    assert plan_stop(PANDA, at(1.0, 0.0)).duration_s == pytest.approx(0.300, abs=1e-6)
    assert plan_stop(PANDA, at(0.75, 5.0)).duration_s == pytest.approx(0.400, abs=1e-6)
    A, J = PANDA.a_max_rad_s2, PANDA.j_max_rad_s3
    assert stop_distance(np.full(N, 1.0), np.zeros(N), A, J)[0] == pytest.approx(0.150, abs=1e-6)
    assert stop_distance(np.full(N, 0.75), np.full(N, 5.0), A, J)[0] == pytest.approx(0.2417, abs=1e-4)


def test_a_planned_move_goes_from_rest_to_rest_at_a_share_of_the_speed() -> None:
    start, goal = MotionState.at_rest(panda().poses.ready_rad), panda().poses.home_rad
    plan = plan_move(PANDA, start, goal, 0.4)
    speeds = np.abs([plan.at(t).v for t in np.linspace(0.0, plan.duration_s, 100)])
    assert (speeds <= 0.4 * PANDA.v_max_rad_s + 1e-9).all()
    assert np.allclose(plan.at(plan.duration_s).q, goal) and not plan.at(plan.duration_s).moving
