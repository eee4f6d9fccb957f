"""What an operator and a broken cable do to a graph of real processes that demands an operator's heartbeat.

One bring-up; each test starts from an arm that moves.
"""

import pytest

MOVING_M_S = 0.03
NODES = ("sim", "perception", "policy", "supervisor", "arm_controller")


@pytest.fixture(scope="module")
def graph(make_graph, fake_policy):
    graph = make_graph()
    parameters = {"sim": {"seed": 3}, "supervisor": {"operator_heartbeat": "required"}}
    for name in NODES:
        graph.start(name, script=fake_policy if name == "policy" else None, **parameters.get(name, {}))
    graph.wait_active(*NODES)
    graph.wait(lambda: graph.client.state is not None, 10.0, "no safety_state")
    return graph


@pytest.fixture
def armed(graph):
    """Somebody is in charge, every cable is in, and the arm waits for a sentence."""
    graph.client.set_parameters("sim", unplugged="")
    graph.client.take_charge(full_speed=True)
    graph.rearm()
    return graph


@pytest.fixture
def moving(armed):
    """The arm sways."""
    armed.client.instruct_or_fail("sway")
    armed.wait(lambda: armed.client.state.tool_speed > MOVING_M_S, 10.0, "the arm did not move")
    return armed


def at_rest(graph):
    graph.wait(lambda: graph.client.state.tool_speed == 0.0, 3.0, "the arm did not come to rest")


def test_arm_stops_when_the_operator_leaves_and_cannot_be_rearmed_without_one(moving):
    from vla_ros.msg import SafetyState

    moving.client.leave_charge()
    moving.wait(lambda: moving.client.state.reason == "operator_heartbeat", 3.0, "no stop")
    assert moving.client.state.latched
    assert moving.client.state.heartbeat == SafetyState.HEARTBEAT_LOST
    at_rest(moving)
    assert not moving.client.rearm(timeout_s=1.0).success


def test_arm_is_slow_unless_somebody_says_that_it_may_be_fast(moving):
    fast = moving.client.state.speed_cap
    moving.client.take_charge(full_speed=False)
    moving.wait(lambda: moving.client.state.speed_cap < fast, 3.0, "the cap did not fall")
    assert moving.client.state.speed_cap == pytest.approx(0.25)
    assert not moving.client.state.latched
    moving.client.take_charge(full_speed=True)
    moving.wait(lambda: moving.client.state.speed_cap == fast, 3.0, "the cap did not rise again")


def test_camera_that_is_unplugged_holds_the_arm_until_it_is_back(moving):
    moving.client.set_parameters("sim", unplugged="scene")
    moving.wait(lambda: moving.client.state.reason == "image_stale", 3.0, "no hold")
    at_rest(moving)
    moving.client.set_parameters("sim", unplugged="")
    moving.wait(lambda: moving.client.state.tool_speed > MOVING_M_S, 10.0, "it did not go on")


def test_lost_joint_states_hold_the_arm_and_then_stop_it(moving):
    moving.client.set_parameters("sim", unplugged="joint_states")
    moving.wait(lambda: moving.client.state.reason == "state_stale", 3.0, "no hold")
    moving.wait(lambda: moving.client.state.latched, 3.0, "no stop")
    at_rest(moving)


def test_cable_that_does_not_exist_is_refused_with_the_ones_that_do(graph):
    from vla_ros.cli.report import CliError

    with pytest.raises(CliError, match="joint_states, scene, wrist"):
        graph.client.set_parameters("sim", unplugged="tail")


def test_cancelled_execute_brakes_at_once_and_ends_as_cancelled(armed):
    from vla_ros.action import Execute

    goal = armed.client.execute("sway", 20.0)
    assert goal.accepted
    ended = goal.get_result_async()
    armed.wait(lambda: armed.client.state.tool_speed > MOVING_M_S, 10.0, "the arm did not move")
    goal.cancel_goal_async()
    armed.wait(lambda: armed.client.state.instruction_id == 0, 1.0, "the instruction is still open")
    armed.wait(ended.done, 5.0, "the action did not end")
    assert ended.result().result.outcome == Execute.Result.OUTCOME_CANCELLED
    at_rest(armed)


def test_retreat_goes_back_along_the_path_and_needs_an_armed_arm(moving):
    moving.client.interrupt()
    at_rest(moving)
    refused = moving.client.trigger("retreat")
    assert not refused.success and "rearm" in refused.message
    assert moving.client.rearm().success
    answer = moving.client.trigger("retreat")
    assert answer.success, answer.message
    moving.wait(lambda: moving.client.state.tool_speed > 0.0, 3.0, "it does not go back")
    moving.wait(lambda: moving.client.state.phase == "idle", 10.0, "it does not arrive")


def test_diagnostics_show_the_hand_overs_of_a_moving_arm(moving):
    figures = ("seam_jump_rad", "seam_jump_rad_s", "observation_age_ms", "rows_skipped", "limiter_ratio", "lateness_ms")

    def shown():
        return set(figures) <= set(moving.client.health["supervisor"].values)

    moving.wait(shown, 5.0, "figures are missing")
