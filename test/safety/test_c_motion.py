"""Section C of the fault table, motion limits: C1, C2, C3, C4, C7. Levels U and S."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_loop import Loop, feasible_state, panda, panda_kinematics
from harness import Bench
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joint_bench import EVERYWHERE, JointBench, joint_contract, self_contacts

from vla_ros.core.collision import HOLD_M, SelfCollision
from vla_ros.core.decision import Inputs, SpeedMode
from vla_ros.core.limits import Limiter, plan_stop
from vla_ros.core.lookahead import ELBOW_RADIUS_M, SINGULAR_HOLD
from vla_ros.core.rules import Reason
from vla_ros.core.types import Severity

READY, LIMITS, DT = panda().poses.ready_rad, panda().limits, panda().period_s
KINEMATICS = panda_kinematics()
REST_S = 0.350 * 1.5 + 0.1  # C2, C3: bound of the table, + 50 % on a loaded machine, random phase


def happened(bench: Bench, reason: Reason) -> bool:
    return bench.supervisor._monitor.counts[reason] > 0


# -- C1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), stop_share=st.sampled_from([0.0, 0.02, 0.2]))
@example(seed=10, stop_share=0.0)  # leaves the limits without the envelope, as one story in seven does
def test_C1_from_any_state_inside_the_envelope_every_sequence_of_requests_and_stops_stays_inside(
    seed: int, stop_share: float
) -> None:
    rng = np.random.default_rng(seed)
    limiter, state = Limiter(LIMITS, DT), feasible_state(LIMITS, rng)
    request, stop, stop_s = state.q, None, 0.0
    for _ in range(120):
        dt = rng.choice([DT, 0.5 * DT, 2.0 * DT])
        if rng.random() < 0.1:
            request = rng.uniform(LIMITS.q_lo_rad - 1.0, LIMITS.q_hi_rad + 1.0)
        if stop is None and rng.random() < stop_share:
            stop, stop_s = plan_stop(LIMITS, state), 0.0
        if stop is not None:
            stop_s += dt
            after = stop.at(stop_s)
            stop = None if rng.random() < 0.05 else stop  # resumed half-way, as after a short hold
        else:
            after = limiter.step(state, request, np.zeros(7), dt)
        assert (after.q >= LIMITS.q_lo_rad).all() and (after.q <= LIMITS.q_hi_rad).all()
        assert (np.abs(after.a) <= LIMITS.a_max_rad_s2 + 1e-9).all()
        assert (np.abs(after.a - state.a) <= LIMITS.j_max_rad_s3 * dt + 1e-6).all()
        state = after


@pytest.mark.sim
@pytest.mark.parametrize("joint, sign", [(0, 1), (3, -1), (5, 1), (6, -1)])
def test_C1_a_joint_driven_at_its_limit_is_slowed_and_stops_at_the_soft_limit(joint: int, sign: int) -> None:
    bound = (LIMITS.q_hi_rad if sign > 0 else LIMITS.q_lo_rad)[joint]
    start, goal = READY.copy(), READY.copy()
    start[joint], goal[joint] = bound - 0.6 * sign, bound + 0.08 * sign  # less than 5 degrees: clamped, not rejected
    bench = JointBench(start_q=start, speed_rad_s=1.0).go(goal)
    bench.run(2.0)
    _, q, v = bench.stream()
    assert (sign * q[:, joint] <= sign * bound).all()
    assert sign * (bound - q[-1, joint]) < 0.005 and np.abs(v[-1]).max() < 0.01  # at the limit, and stands
    assert np.abs(v[:, joint]).max() > 0.7


# -- C2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize("axis, sign", [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)],
                         ids=["x-", "x+", "y-", "y+", "table", "z+"])  # fmt: skip
def test_C2_a_tool_driven_out_of_the_workspace_is_held_at_the_face_and_may_come_back(axis: int, sign: int) -> None:
    centre = KINEMATICS.points(READY)[0]
    box = dataclasses.replace(panda().workspace, lower_m=centre - 0.08, upper_m=centre + 0.08)
    target = centre.copy()
    target[axis] += 0.12 * sign  # 40 mm outside: joint rows are not clamped to the box
    goal, reached = KINEMATICS.inverse(KINEMATICS.tool_pose(READY)[0], target, READY)
    assert reached
    bench = JointBench(contract=joint_contract(box), start_q=READY, speed_rad_s=0.5).go(goal)
    bench.until(Reason.WORKSPACE)
    bench.fault_s, bench.goal_q = bench.now_s, READY
    bench.run(0.6)
    assert bench.rest_s() <= REST_S
    p = np.array([KINEMATICS.points(d.command.q_rad)[0] for d in bench.decisions])
    assert 0.065 < (sign * (p[:, axis] - centre[axis])).max() <= 0.085
    assert sign * (bench.world.tool_pose()[1][axis] - centre[axis]) <= 0.085
    bench.run(1.5)  # retreat
    assert bench.decisions[-1].severity < Severity.HOLD and np.abs(bench.q - READY).max() < 0.05


@pytest.mark.sim
def test_C2_an_elbow_that_sinks_to_the_table_is_held_above_it_and_may_rise_again() -> None:
    start, goal = np.array([0.0, 0.7, 2.8, -1.8, 0.0, 2.2, 0.8]), np.array([0.0, 1.3, 2.8, -1.8, 0.0, 2.2, 0.8])
    heights = [KINEMATICS.points(q)[1][2] for q in (start, goal)]
    floor = np.array([-2.0, -2.0, 0.5 * sum(heights) - ELBOW_RADIUS_M])
    tool_z = [KINEMATICS.points(start + s * (goal - start))[0][2] for s in np.linspace(0.0, 1.0, 5)]
    assert min(tool_z) > floor[2] + 0.05  # only the elbow is in question
    box = dataclasses.replace(EVERYWHERE, lower_m=floor)
    bench = JointBench(contract=joint_contract(box), start_q=start).go(goal)
    bench.until(Reason.WORKSPACE)
    bench.goal_q = start
    bench.run(2.0)
    z = np.array([KINEMATICS.points(d.command.q_rad)[1][2] for d in bench.decisions])
    assert z.min() >= floor[2] + ELBOW_RADIUS_M - 0.005
    assert np.abs(bench.q - start).max() < 0.05


# -- C3 ------------------------------------------------------------------------------------------------------------

FOLDED = {  # found by random search: the way there from the ready pose meets the arm itself and no singularity before
    "hand on forearm": [0.0, -0.2931, 0.0, -2.5775, 0.0, 0.0, 0.7854],
    "turned hand on forearm": [2.59, -1.31, -1.06, -1.81, 0.42, 0.21, -0.09],
    "hand on shoulder": [1.65, -1.64, -2.2, -3.0, 0.47, 0.93, 0.66],
    "finger on shoulder": [1.58, -1.37, 1.27, -2.97, 0.03, 0.77, -0.79],
}


@pytest.mark.sim
@pytest.mark.parametrize("folded", FOLDED.values(), ids=FOLDED)
def test_C3_an_arm_that_folds_into_itself_is_slowed_and_held_and_may_unfold(folded: list[float]) -> None:
    distance = SelfCollision(panda(), KINEMATICS).distance
    goal = np.clip(folded, LIMITS.q_lo_rad, LIMITS.q_hi_rad)
    way = np.array([distance(READY + s * (goal - READY)) for s in np.linspace(0.0, 1.0, 200)])
    meets = int(np.argmax(way < HOLD_M))
    start = READY + max(meets / 199 - 0.3, 0.0) * (goal - READY)
    overlap = READY + (meets + int(np.argmin(way[meets : meets + 30]))) / 199 * (goal - READY)
    assert distance(overlap) < 0.012 and distance(start) > 0.05
    bench = JointBench(start_q=start).go(goal)
    bench.until(Reason.SELF_COLLISION)
    bench.fault_s, bench.goal_q = bench.now_s, start
    assert happened(bench, Reason.SELF_COLLISION_NEAR) and min(d.scale for d in bench.decisions) < 0.5
    touched = set()
    for _ in range(60):
        bench.tick()
        touched |= self_contacts(bench.q)
    assert not touched
    assert bench.rest_s() <= REST_S
    assert min(distance(d.command.q_rad) for d in bench.decisions) >= HOLD_M - 0.003
    bench.run(2.5)
    assert bench.decisions[-1].severity < Severity.HOLD and distance(bench.q) > 0.045


@pytest.mark.sim
def test_C3_the_distance_says_touching_where_mujoco_does_and_nowhere_else() -> None:
    distance, rng = SelfCollision(panda(), KINEMATICS).distance, np.random.default_rng(0)
    touching = 0
    for _ in range(300):
        q = rng.uniform(LIMITS.q_lo_rad, LIMITS.q_hi_rad)
        contacts, d = self_contacts(q), distance(q)
        touching += bool(contacts)
        assert (d < 0.002) if contacts else (d > -0.002), (contacts, d, q.tolist())
    assert touching > 10


# -- C4 ------------------------------------------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize("line", ["outstretched", "wrist"])
def test_C4_a_way_through_a_singularity_is_slowed_and_held_and_may_turn_back(line: str) -> None:
    if line == "outstretched":
        start = KINEMATICS.inverse(KINEMATICS.tool_pose(READY)[0], np.array([0.60, 0.1, 0.4]), READY)[0]
        goal = start + np.array([0.0, 0.6, 0.0, 1.9, 0.0, 0.9, 0.0])  # the elbow straightens
    else:
        goal = np.array([2.7, -0.69, -1.06, -0.43, 0.48, 1.76, 1.56])
        start = READY + 0.5 * (goal - READY)
    ways = [KINEMATICS.condition(start + s * (goal - start)) for s in np.linspace(0.0, 1.0, 100)]
    assert ways[0] < 17.0 and max(ways) > 33.0
    bench = JointBench(start_q=start).go(goal)
    bench.until(Reason.SINGULARITY)
    bench.goal_q = start
    assert happened(bench, Reason.SINGULARITY_NEAR) and min(d.scale for d in bench.decisions) < 0.6
    bench.run(0.5)
    assert max(KINEMATICS.condition(d.command.q_rad) for d in bench.decisions) <= SINGULAR_HOLD + 1.0
    bench.run(2.5)
    assert bench.decisions[-1].severity < Severity.HOLD and KINEMATICS.condition(bench.q) < 17.0


# -- C7 ------------------------------------------------------------------------------------------------------------

ELBOW_OUT = np.array([-1.2, -1.5, 0.0, -2.36, 0.0, 2.0, -0.33])  # turning joint 1 moves the elbow faster than the tool


@pytest.mark.sim
@pytest.mark.parametrize("cause", ["asked", "silent"])
@pytest.mark.parametrize("point", ["tool", "elbow"])
def test_C7_tool_and_elbow_slow_down_within_the_ramp_when_reduced_speed_is_asked_or_nobody_allows_more(
    point: str, cause: str
) -> None:
    reduced, start = panda().speed.reduced_m_s, READY if point == "tool" else ELBOW_OUT
    if point == "tool":
        start = start + np.array([-1.0, 0, 0, 0, 0, 0, 0])
    goal = start + np.array([2.4, 0, 0, 0, 0, 0, 0])
    bench = JointBench(start_q=start, speed_rad_s=0.95, speed_mode="full").go(goal)
    bench.run(0.7)
    speeds = lambda: KINEMATICS.speeds(bench.decisions[-1].command.q_rad, bench.decisions[-1].command.qd_rad_s)  # noqa: E731
    assert speeds()[0 if point == "tool" else 1] > 1.05 * reduced and bench.decisions[-1].speed_cap_m_s == 0.5
    bench.speed_mode = "reduced" if cause == "asked" else ""
    asked_s = bench.now_s + (0.0 if cause == "asked" else panda().timeouts.operator_heartbeat_s)
    while bench.decisions[-1].speed_cap_m_s > reduced:
        bench.tick()
        assert bench.now_s - asked_s <= 0.030 + 1e-9  # react
    assert happened(bench, Reason.REDUCED_SPEED) and bench.decisions[-1].severity is Severity.LIMIT
    bench.run(0.4)  # the ramp
    for _ in range(40):
        bench.tick()
        assert speeds().max() <= reduced
    bench.speed_mode = "full"
    bench.run(0.45)
    assert bench.decisions[-1].speed_cap_m_s == reduced  # good for 0.5 s first
    bench.run(0.15)
    assert bench.decisions[-1].speed_cap_m_s == panda().speed.tool_m_s


@pytest.mark.unit
def test_C7_full_speed_needs_a_fresh_permission_wherever_one_was_ever_given_or_is_required() -> None:
    required = dataclasses.replace(panda(), operator_heartbeat_required=True)
    for contract, mode, wanted in (
        (panda(), None, False),
        (required, None, True),
        (panda(), SpeedMode(True, 100.0), True),
        (panda(), SpeedMode(False, 100.0), False),
        (required, SpeedMode(False, 100.0), False),
        (panda(), SpeedMode(False, 99.4), True),
        (panda(), SpeedMode(False, float("nan")), True),
        (panda(), SpeedMode(False, -np.inf), True),
    ):
        supervisor = Loop(contract=contract).supervisor
        supervisor.update(100.0, Inputs(speed_mode=mode))
        assert supervisor._monitor.is_active(Reason.REDUCED_SPEED) is wanted, mode


@pytest.mark.sim
def test_C7_a_planned_move_under_way_slows_down_too() -> None:
    start = READY + np.array([-1.5, 0, 0, 0, 0, 0, 0])
    home = dataclasses.replace(panda().poses, home_rad=READY + np.array([1.5, 0, 0, 0.3, 0, 0, 0]))
    contract = joint_contract(poses=home, speed=dataclasses.replace(panda().speed, reduced_m_s=0.1))
    bench = JointBench(contract=contract, start_q=start, speed_mode="full")
    bench.arm()
    bench.tick(home=("h",))
    bench.run(1.0)
    assert bench.decisions[-1].tool_speed_m_s > 0.12
    bench.speed_mode = "reduced"
    bench.run(0.5)
    for _ in range(30):
        assert 0.03 < bench.tick().tool_speed_m_s <= 0.1
