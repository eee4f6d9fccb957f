"""Fault E6 at level P: the supervisor in a domain of its own, a relay between it and the rest, and the relay cut.

What crosses the cut is forwarded as it is, serialised. Nothing else connects the two sides.
"""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.realtime

RELAY = Path(__file__).resolve().parent / "relay.py"
ARM_SIDE = ("sim", "perception", "policy", "arm_controller")
MOVING_M_S = 0.03
REST_RAD_S = 0.01
SLACK_S = 0.25


@pytest.fixture(scope="module")
def sides(make_graph, fake_policy):
    """(graph of the supervisor, graph of the arm); the relay is a process of the first."""
    near, far = make_graph(), make_graph()
    for name in ARM_SIDE:
        far.start(name, script=fake_policy if name == "policy" else None, **({"seed": 3} if name == "sim" else {}))
    near.start("supervisor")
    near.environment |= {"RELAY_DOMAINS": f"{near.domain_id} {far.domain_id}"}
    near.start("relay", script=RELAY)
    far.wait_active(*ARM_SIDE)
    near.wait_active("supervisor")
    near.wait(lambda: near.client.state is not None, 10.0, "no safety_state")
    return near, far


def test_E6_supervisor_that_is_cut_off_holds_then_stops_and_the_arm_brakes_by_itself(sides, make_tape, record_property):
    from sensor_msgs.msg import JointState

    near, far = sides
    joints = make_tape(far.client, JointState, "joint_states", "joint_states")
    answer = near.client.rearm(timeout_s=20.0)
    assert answer.success, answer.message
    near.client.instruct_or_fail("sway")
    near.wait(lambda: near.client.state.tool_speed > MOVING_M_S, 20.0, "the arm did not move")

    relay = near.processes["relay"]
    reasons = []
    near.client.subscribe(type(near.client.state), "safety_state", "safety_state", lambda m: reasons.append(m.reason))
    event_s = time.monotonic()
    relay.send_signal(signal.SIGSTOP)
    try:
        far.wait(lambda: far.client.arm.latched, 3.0, "the arm does not brake")
        assert far.client.arm.reason == "command_timeout"
        near.wait(lambda: near.client.state.latched, 3.0, "the supervisor goes on")
        assert "state_stale" in reasons  # the hold that comes first

        def stands():
            after = joints.since(event_s)
            moving = [t for t, m in after if np.abs(np.array(m.velocity)).max() >= REST_RAD_S]
            last_s = moving[-1] if moving else event_s
            return last_s if after and after[-1][0] - last_s > 0.5 else None

        rest_s = far.wait(stands, 6.0, "the arm did not come to rest") - event_s
        record_property("rest_ms", rest_s * 1e3)
        assert rest_s < 1.5 * 0.5 + SLACK_S
        assert near.client.state.reason in ("state_lost", "arm_lost")
        assert not near.client.rearm(timeout_s=1.0).success
    finally:
        relay.send_signal(signal.SIGCONT)
    q, from_tick = np.array(joints.items[-1][1].position), near.client.state.ticks
    near.wait(lambda: near.client.state.ticks > from_tick + 50, 5.0, "no states")  # what was kept back is out by now
    assert np.abs(np.array(joints.items[-1][1].position) - q).max() < 1e-3  # the old motion does not resume
    answer = near.client.rearm(timeout_s=20.0)
    assert answer.success, answer.message
