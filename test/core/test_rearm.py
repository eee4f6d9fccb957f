"""Rearm is refused with a fault, in motion, or without the operator: the whole truth table (fault D6)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from core_loop import Loop, panda

from vla_ros.core.types import Severity

pytestmark = pytest.mark.unit

CASES = list(itertools.product([False, True], repeat=5))
NAMES = ("moving", "fault", "no heartbeat", "stale joints", "outside limits")


def prepared(moving: bool, fault: bool, heartbeat_lost: bool, stale: bool, outside: bool) -> tuple[Loop, dict]:
    """A stopped supervisor after some quiet, and the inputs that make exactly these conditions true."""
    contract = dataclasses.replace(panda(), operator_heartbeat_required=True)
    loop = Loop(contract=contract)
    for _ in range(20):
        loop.tick(heartbeat_at_s=loop.now_s)
    inputs: dict = {"heartbeat_at_s": loop.now_s}
    sample = loop.sample()
    if moving:
        sample = dataclasses.replace(sample, qd_rad_s=np.full(7, 0.011))
    if outside:
        q = sample.q_rad.copy()
        q[5] = contract.limits.q_lo_rad[5] - 0.01
        sample = dataclasses.replace(sample, q_rad=q)
    if fault:
        inputs["interrupts"] = 1
    age_s = 0.08 if stale else 0.0
    inputs["joints"] = dataclasses.replace(sample, measured_at_s=loop.now_s + 0.01 - age_s + 0.001)
    if heartbeat_lost:
        inputs["heartbeat_at_s"] = None
    return loop, inputs


@pytest.mark.parametrize(
    "case", CASES, ids=["+".join(n for n, c in zip(NAMES, case, strict=True) if c) or "none" for case in CASES]
)
def test_rearm_is_accepted_only_when_nothing_is_wrong(case: tuple[bool, ...]) -> None:
    _, _, heartbeat_lost, stale, _ = case
    loop, inputs = prepared(*case)
    if heartbeat_lost:
        for _ in range(52):
            loop.tick()
        inputs["joints"] = dataclasses.replace(inputs["joints"], measured_at_s=inputs["joints"].measured_at_s + 0.6)
    if stale:  # a newer sample that is old already: nothing came for 80 ms
        loop.joints_on = False
        for _ in range(8):
            loop.tick(heartbeat_at_s=None if heartbeat_lost else loop.now_s)
        inputs.pop("joints")
        if not heartbeat_lost:
            inputs["heartbeat_at_s"] = loop.now_s
    decision = loop.tick(rearms=("t",), **inputs)
    reply = decision.replies[0]
    wrong = any(case)
    assert reply.accepted is not wrong
    assert bool(reply.reason) is wrong
    assert (decision.severity >= Severity.STOP) is wrong
    assert decision.command.rearm_counter == (0 if wrong else 1)


def test_a_fault_must_be_gone_for_half_a_second() -> None:
    loop = Loop()
    loop.arm()
    loop.tick(interrupts=1)
    loop.run(0.45)
    refused = loop.tick(rearms=("t",)).replies[0]
    assert not refused.accepted and "interrupt" in refused.reason
    loop.run(0.1)
    assert loop.tick(rearms=("t",)).replies[0].accepted


def test_rearm_in_the_update_of_an_interrupt_is_refused() -> None:
    loop = Loop()
    loop.arm()
    loop.run(0.1)
    decision = loop.tick(interrupts=1, rearms=("t",))
    assert not decision.replies[0].accepted and decision.latched


def test_the_first_command_after_a_rearm_is_the_hold_position() -> None:
    loop = Loop(goal_p=np.array([0.5, 0.2, 0.2]))
    loop.arm()
    loop.instruct()
    loop.run(1.0)
    loop.tick(interrupts=1)
    loop.run(1.0)
    hold = loop.decisions[-1].command.q_rad
    assert (loop.tick(rearms=("t",)).command.q_rad == hold).all()


def test_an_arm_that_was_moved_by_hand_while_stopped_is_held_where_it_is() -> None:
    loop = Loop()
    loop.run(0.7)
    loop.arm_on = False
    loop.q = loop.q + 0.1
    loop.run(0.7)
    decision = loop.tick(rearms=("t",))
    assert decision.replies[0].accepted and np.allclose(decision.command.q_rad, loop.q)


def test_a_rearm_while_armed_and_at_rest_raises_the_counter_for_an_arm_controller_that_latched_alone() -> None:
    loop = Loop()
    loop.arm()
    loop.run(0.2)
    decision = loop.tick(rearms=("t",))
    assert decision.replies[0].accepted and decision.command.rearm_counter == 2


def test_a_lost_heartbeat_stops_where_the_contract_asks_for_one() -> None:  # D4
    loop = Loop(contract=dataclasses.replace(panda(), operator_heartbeat_required=True))
    for _ in range(80):
        loop.tick(heartbeat_at_s=loop.now_s)
    assert loop.tick(heartbeat_at_s=loop.now_s, rearms=("t",)).replies[0].accepted
    assert loop.decisions[-1].heartbeat == 1
    loop.run(0.45)
    assert loop.decisions[-1].severity < Severity.HOLD
    loop.run(0.1)
    assert loop.decisions[-1].reason.value == "operator_heartbeat" and loop.decisions[-1].heartbeat == 2
