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
from vla_ros.data.recorded import Recorded


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
    """What had been asked for when a replay begins. `kept`: the instruction (id, text) that the policy had accepted
    before a person took over; a person's own is opened anew."""

    source: Source = Source.POLICY
    kept: tuple[int, str] | None = None


def before(recorded: Recorded, first: int) -> Before:
    """At tick `first`."""
    turns = drivers(recorded)
    source = [who for at_ns, who in turns if at_ns <= recorded.tick_ns[first]] or [who for _, who in turns[:1]]
    if not source or source[-1] is Source.POLICY:
        return Before()
    # One that stays open when it is handed back had been accepted: a person's own ends there (`Supervisor`).
    back_ns = next((at for at, who in turns if at > recorded.tick_ns[first] and who is Source.POLICY), 0)
    states = recorded.messages.get("safety_state", [])
    left = next((s.instruction_id for s in states if back_ns and stamp_ns(s.stamp) >= back_ns), 0)
    texts = {m.instruction_id: m.text for at, m in recorded.heard("instruction") if at <= recorded.tick_ns[first]}
    return Before(source[-1], (left, texts[left]) if left and left in texts else None)


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
    newest = known.kept[0] if known.kept else 0
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
    for ns, source in _changes(recorded, first, known.source):
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


def _changes(recorded: Recorded, first: int, source: Source) -> list[tuple[int, Source]]:
    """(when [ns], who was asked for). A moving arm brakes before it changes hands: the request came when what was
    under way began to wait again, and if the same one goes on without a change, it was taken back there."""
    told, asked, braking = dict(drivers(recorded)), [], False
    for last, state in _states(recorded, first):
        ns = stamp_ns(state.stamp)
        who = told.get(ns, source)
        if who is not source:
            if not braking:
                asked.append((ns, who))
            source, braking = who, False
        elif (last.phase, state.phase) == ("moving", "waiting") and 0 < last.instruction_id == state.instruction_id:
            asked.append((ns, Source.POLICY if source is Source.TELEOPERATION else Source.TELEOPERATION))
            braking = True
        elif braking and state.phase == "moving":
            asked.append((ns, source))
            braking = False
    return asked
