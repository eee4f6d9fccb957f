"""What an operator asked for while an episode was recorded. Services are not in a bag: it is read from what followed.

A rearm from the counter of the commands, an instruction from the one that the supervisor published, a cancel and an
interrupt from its states, a take-over and a hand-back from what it said about who drives (docs/teleoperation.md).
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from vla_ros.core.rules import Reason
from vla_ros.core.types import Source
from vla_ros.data.bag_reader import stamp_ns
from vla_ros.data.recorded import LAST_NS, Recorded


@dataclass(frozen=True)
class Asked:
    """In one tick."""

    rearm: bool = False
    interrupt: bool = False
    instruct: tuple[int, str] | None = None  # id and text
    close: int = 0  # id of the instruction that was cancelled
    source: Source | None = None  # who is to drive from now on


@dataclass(frozen=True)
class Before:
    """How it stood when a replay begins: who drove, the open instruction (id, text), and whether the policy had
    accepted it; for a person's own it was not asked."""

    source: Source = Source.POLICY
    opened: tuple[int, str] | None = None
    accepted: bool = False


def before(recorded: Recorded, first: int) -> Before:
    """At tick `first`."""
    first_ns, turns = recorded.tick_ns[first], drivers(recorded)
    states = [(stamp_ns(s.stamp), s) for s in recorded.messages.get("safety_state", [])]
    source = next((who for at_ns, who in reversed(turns) if at_ns <= first_ns), turns[0][1] if turns else Source.POLICY)
    state = next((s for at_ns, s in reversed(states) if at_ns <= first_ns), None)
    if state is None or not state.instruction_id:
        return Before(source)
    accepted = source is Source.POLICY
    if not accepted:  # what stays open when it is handed back had been accepted: a person's own ends there
        back_ns = next((at_ns for at_ns, who in turns if at_ns > first_ns and who is Source.POLICY), LAST_NS)
        accepted = next((s.instruction_id for at_ns, s in states if at_ns >= back_ns), 0) == state.instruction_id
    return Before(source, (state.instruction_id, state.text), accepted)


def requests(recorded: Recorded, first: int, known: Before) -> dict[int, Asked]:
    """By tick from `first` on: each request belongs to the tick that published its effect."""
    asked: defaultdict[int, Asked] = defaultdict(Asked)

    def put(ns: int, **what: Any) -> None:
        tick = max(bisect.bisect_right(recorded.tick_ns, ns) - 1, first)
        asked[tick] = dataclasses.replace(asked[tick], **what)

    commands = recorded.commands
    for k in range(first + 1, len(commands)):
        if commands[k].rearm_counter > commands[k - 1].rearm_counter:
            asked[k] = dataclasses.replace(asked[k], rearm=True)
    newest = known.opened[0] if known.opened else 0
    if known.opened and not known.accepted:
        asked[first] = dataclasses.replace(asked[first], instruct=known.opened)
    for log_ns, m in recorded.heard("instruction"):
        if m.instruction_id > newest:
            newest = m.instruction_id
            put(log_ns, instruct=(newest, m.text))
    for last, state in _states(recorded, first):
        ns = stamp_ns(state.stamp)
        if state.reason == Reason.INTERRUPT.value != last.reason:
            put(ns, interrupt=True)
        if last.instruction_id > 0 and state.instruction_id == 0 and state.phase not in ("done", "stopped"):
            put(ns, close=last.instruction_id)
    for ns, source, done_ns in changes(recorded):
        if done_ns > recorded.tick_ns[first]:
            put(ns, source=source)
    return dict(asked)


def drivers(recorded: Recorded) -> list[tuple[int, Source]]:
    """(tick [ns], who): each word about who drives. It has no stamp: that of the state that was sent beside it."""
    states = sorted((log_ns, stamp_ns(s.stamp)) for log_ns, s in recorded.heard("safety_state"))
    turns = []
    for log_ns, m in recorded.heard("teleoperated"):
        k = bisect.bisect_left(states, (log_ns, 0))
        near = min(states[max(k - 1, 0) : k + 1], key=lambda state: abs(state[0] - log_ns), default=(log_ns, log_ns))
        turns.append((near[1], Source.TELEOPERATION if m.data else Source.POLICY))
    return sorted(turns)


def _states(recorded: Recorded, first: int) -> list[tuple[Any, Any]]:
    """(the one before, state): of each state from tick `first` on."""
    states = recorded.messages.get("safety_state", [])
    return [
        (last, state) for last, state in itertools.pairwise(states) if stamp_ns(state.stamp) >= recorded.tick_ns[first]
    ]


def changes(recorded: Recorded) -> list[tuple[int, Source, int]]:
    """(when [ns], who was asked for, when it was so [ns]). A moving arm brakes before it changes hands: it was asked
    when what was under way began to wait again; if that goes on without a change, the request was taken back there."""
    told = dict(drivers(recorded))
    source, braking_ns = next(iter(told.values()), Source.POLICY), 0
    asked = []
    for last, state in itertools.pairwise(recorded.messages.get("safety_state", [])):
        ns = stamp_ns(state.stamp)
        who = told.get(ns, source)
        other = Source.POLICY if source is Source.TELEOPERATION else Source.TELEOPERATION
        if who is not source:
            asked.append((braking_ns or ns, who, ns))
            source, braking_ns = who, 0
        elif (last.phase, state.phase) == ("moving", "waiting") and 0 < last.instruction_id == state.instruction_id:
            braking_ns = ns
        elif braking_ns and state.phase == "moving":
            asked += [(braking_ns, other, ns), (ns, source, ns)]
            braking_ns = 0
    if braking_ns:
        asked.append((braking_ns, other, LAST_NS))
    return asked
