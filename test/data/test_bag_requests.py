"""What an operator asked for, read from what the supervisor said afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vla_ros.core.types import Source
from vla_ros.data.recorded import NS, Recorded
from vla_ros.data.requests import Before, before, drivers, requests

pytestmark = pytest.mark.unit
PERSON, POLICY = Source.TELEOPERATION, Source.POLICY
TICK_NS = 10_000_000
DELAY_NS = 2_000_000  # from a tick to the receipt of what it said


def stamp(tick: int) -> SimpleNamespace:
    return SimpleNamespace(sec=tick * TICK_NS // NS, nanosec=tick * TICK_NS % NS)


def episode(*told: tuple, instructions: tuple = (), rearms: tuple = (), ticks: int = 100) -> Recorded:
    """`told`: (tick, phase, open id, who drives[, reason]) of each state, `instructions`: (tick, id, text), `rearms`:
    ticks. Tick 1 is the first."""
    recorded = Recorded()
    recorded.tick_ns = [k * TICK_NS for k in range(1, ticks + 1)]
    recorded.commands = [SimpleNamespace(rearm_counter=sum(r <= k for r in rearms)) for k in range(1, ticks + 1)]
    states, drove = [], []
    for tick, phase, open_id, who, *reason in told:
        text = f"text {open_id}" if open_id else ""
        states.append(
            SimpleNamespace(stamp=stamp(tick), phase=phase, instruction_id=open_id, text=text, reason="".join(reason))
        )
        drove.append(SimpleNamespace(data=who is PERSON))
    heard = [tick * TICK_NS + DELAY_NS for tick, *_ in told]
    recorded.messages = {"safety_state": states, "teleoperated": drove}
    recorded.log_ns = {"safety_state": heard, "teleoperated": [ns + 500_000 for ns in heard]}
    recorded.messages["instruction"] = [SimpleNamespace(instruction_id=i, text=text) for _, i, text in instructions]
    recorded.log_ns["instruction"] = [tick * TICK_NS + DELAY_NS for tick, *_ in instructions]
    return recorded


def asked(recorded: Recorded, first: int = 0) -> dict[int, object]:
    """{tick: who was asked for}."""
    found = requests(recorded, first, before(recorded, first))
    return {k + 1: a.source for k, a in found.items() if a.source is not None}


def test_moving_arm_was_asked_to_change_hands_when_it_began_to_brake() -> None:
    told = [(5, "moving", 1, POLICY), (20, "waiting", 1, POLICY), (33, "waiting", 1, PERSON), (40, "moving", 1, PERSON),
            (60, "waiting", 1, PERSON), (72, "waiting", 1, POLICY), (80, "moving", 1, POLICY)]  # fmt: skip
    assert asked(episode(*told)) == {20: PERSON, 60: POLICY}


def test_arm_at_rest_changes_hands_at_once() -> None:
    assert asked(episode((5, "idle", 0, POLICY), (20, "idle", 0, PERSON), (50, "idle", 0, POLICY))) == {
        20: PERSON, 50: POLICY,
    }  # fmt: skip


def test_request_that_was_taken_back_while_the_arm_braked_is_taken_back() -> None:
    told = [(5, "moving", 1, POLICY), (20, "waiting", 1, POLICY), (25, "moving", 1, POLICY), (60, "idle", 0, POLICY)]
    assert asked(episode(*told)) == {20: PERSON, 25: POLICY}


def test_another_instruction_that_waits_for_its_first_chunk_is_no_change_of_hands() -> None:
    told = [(5, "moving", 1, POLICY), (20, "waiting", 2, POLICY), (25, "moving", 2, POLICY)]
    assert asked(episode(*told)) == {}


@pytest.mark.parametrize("late_ns", [-3_000_000, 3_000_000])
def test_word_about_who_drives_belongs_to_the_state_sent_beside_it_whichever_is_heard_first(late_ns: int) -> None:
    recorded = episode((5, "idle", 0, POLICY), (20, "idle", 0, PERSON), (30, "idle", 0, PERSON))
    recorded.log_ns["teleoperated"] = [ns + late_ns for ns in recorded.log_ns["safety_state"]]
    assert drivers(recorded) == [(5 * TICK_NS, POLICY), (20 * TICK_NS, PERSON), (30 * TICK_NS, PERSON)]


def test_recording_that_begins_while_a_person_drives_knows_what_the_policy_had_accepted() -> None:
    driven, opened = [(5, "moving", 3, PERSON), (40, "waiting", 3, PERSON)], (3, "text 3")
    goes_on = episode(*driven, (50, "waiting", 3, POLICY), (60, "moving", 3, POLICY))
    assert before(goes_on, 9) == Before(PERSON, opened, True) and asked(goes_on, 9) == {40: POLICY}
    assert all(a.instruct is None for a in requests(goes_on, 9, before(goes_on, 9)).values())
    by_hand = episode(*driven, (50, "idle", 0, POLICY))
    assert before(by_hand, 9) == Before(PERSON, opened, False)
    assert requests(by_hand, 9, before(by_hand, 9))[9].instruct == opened
    assert before(episode((5, "moving", 3, POLICY)), 9) == Before(POLICY, opened, True)
    assert before(episode((5, "idle", 0, PERSON), (40, "moving", 3, PERSON)), 9) == Before(PERSON)


def test_replay_that_begins_while_the_arm_brakes_begins_with_the_request() -> None:
    told = [(5, "moving", 1, POLICY), (20, "waiting", 1, POLICY), (33, "waiting", 1, PERSON)]
    assert asked(episode(*told), 29) == {30: PERSON} and asked(episode(*told), 39) == {}


def test_instruction_is_asked_for_once_however_often_it_was_shown() -> None:
    told = [(5, "idle", 0, POLICY), (22, "waiting", 1, POLICY), (30, "moving", 1, POLICY)]
    recorded = episode(*told, instructions=((20, 1, "text 1"), (25, 1, "text 1"), (60, 0, "")))
    found = requests(recorded, 0, before(recorded, 0))
    assert {k + 1: a.instruct for k, a in found.items() if a.instruct} == {20: (1, "text 1")}


def test_interrupt_cancel_and_rearm_belong_to_their_ticks() -> None:
    told = [(5, "moving", 1, POLICY), (20, "idle", 0, POLICY), (30, "moving", 2, POLICY),
            (40, "stopped", 0, POLICY, "interrupt"), (50, "stopped", 0, POLICY, "interrupt")]  # fmt: skip
    found = requests(episode(*told, rearms=(1, 60)), 0, Before())
    assert {k + 1 for k, a in found.items() if a.interrupt} == {40}
    assert {k + 1: a.close for k, a in found.items() if a.close} == {20: 1}
    assert {k + 1 for k, a in found.items() if a.rearm} == {60}
