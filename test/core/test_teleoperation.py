"""A person takes over, works, and hands back: what the supervisor makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from core_loop import Loop, assert_stream_inside_limits

from vla_ros.core.rules import is_veto
from vla_ros.core.types import Severity, Source

pytestmark = pytest.mark.unit

PERSON = 33  # writer id


def working() -> Loop:
    """The policy moves the arm."""
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]))
    loop.arm()
    loop.instruct()
    assert loop.run(0.6).phase == "moving"
    return loop


def choose(loop: Loop, source: Source) -> None:
    decision = loop.tick(sources=(("s", source),))
    while not decision.replies:
        decision = loop.tick()
    assert decision.replies[0].accepted and decision.source is source


def alone(text: str) -> Loop:
    """A person works on what no policy was asked to do."""
    loop = Loop(policy_on=False)
    loop.arm()
    choose(loop, Source.TELEOPERATION)
    loop.tick(instructs=(("i", text, 0),))
    loop.instruction_id = loop.decisions[-1].instruction_id
    return loop


def drive(loop: Loop, seconds: float, **changes) -> None:
    """A person's chunks, 20 a second, beside the policy's."""
    for k in range(round(seconds / loop.contract.period_s)):
        person = loop.make_chunk(source=Source.TELEOPERATION, writer_id=PERSON, **changes) if k % 5 == 0 else None
        loop.tick(chunks=(person,) if person is not None else ())


def test_person_takes_over_in_motion_and_the_policy_goes_on_with_the_same_instruction_afterwards() -> None:
    loop = working()
    opened, ticks = loop.decisions[-1].instruction_id, len(loop.decisions)
    choose(loop, Source.TELEOPERATION)
    accepted = loop.decisions[-1].counters.chunks_accepted
    loop.run(0.5)
    assert loop.decisions[-1].phase == "waiting"  # the policy still proposes, and nothing comes of it
    assert loop.decisions[-1].counters.chunks_accepted == accepted
    loop.goal_p = np.array([0.45, -0.2, 0.25])
    drive(loop, 0.8)
    assert (loop.decisions[-1].phase, loop.decisions[-1].instruction_id) == ("moving", opened)
    choose(loop, Source.POLICY)
    assert loop.run(0.4).phase == "moving" and loop.decisions[-1].instruction_id == opened
    told = [e.rule for d in loop.decisions[ticks:] for e in d.events if is_veto(e.rule)]
    assert told == ["other_source"]  # one event says that the policy was not listened to
    assert_stream_inside_limits(loop)


def test_what_the_policy_was_not_asked_to_do_ends_when_it_is_handed_back() -> None:
    loop = Loop(goal_p=np.array([0.55, 0.3, 0.15]), policy_on=False, auto_verdict=False)
    loop.arm()
    choose(loop, Source.TELEOPERATION)
    decision = loop.tick(instructs=(("i", "wave at the neighbours", 0),))
    assert decision.replies[0].accepted and decision.publish_instruction == (1, "wave at the neighbours")
    loop.instruction_id = 1
    loop.tick(verdicts=((1, False, "not known"),))  # a person does what no policy knows
    drive(loop, 0.5)
    assert loop.decisions[-1].phase == "moving"
    choose(loop, Source.POLICY)
    assert loop.decisions[-1].instruction_id == 0


def test_person_says_when_it_is_done() -> None:
    loop = alone("stand still")
    drive(loop, 0.2)
    drive(loop, 1.0, done_probability=1.0)
    assert (loop.decisions[-1].done_id, loop.decisions[-1].phase) == (1, "done")


def test_person_may_stand_still_and_think_where_a_policy_would_be_held() -> None:
    loop = alone("think")
    loop.goal_p = None
    drive(loop, 11.0)
    assert loop.decisions[-1].severity < Severity.HOLD


def test_person_takes_over_what_waits_for_an_operator() -> None:
    loop = working()
    loop.goal_p = None
    assert loop.run(11.0).reason.value == "no_progress"
    choose(loop, Source.TELEOPERATION)
    loop.goal_p = np.array([0.45, -0.2, 0.25])
    drive(loop, 1.0)
    assert loop.decisions[-1].severity < Severity.HOLD and loop.decisions[-1].phase == "moving"


def test_newer_choice_takes_the_place_of_one_that_waits_for_rest() -> None:
    loop = working()
    assert not loop.tick(sources=(("a", Source.TELEOPERATION),)).replies
    first, second = loop.tick(sources=(("b", Source.POLICY),)).replies
    assert (first.token, first.accepted) == ("a", False) and (second.token, second.accepted) == ("b", True)
    assert loop.run(0.5).phase == "moving"


def test_text_is_not_queued_for_a_person() -> None:
    loop = Loop(policy_on=False)
    loop.arm()
    choose(loop, Source.TELEOPERATION)
    reply = loop.tick(instructs=(("i", "later", 1),)).replies[0]
    assert not reply.accepted and "replace" in reply.reason
