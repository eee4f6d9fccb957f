"""The supervisor over a recorded episode: the same pure machine, ticked at the recorded times, fed what was recorded.

A planned move (home, retreat) leaves no trace of who asked for it: the replay ends where one begins.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_ros.core import wire
from vla_ros.core.contract import Contract
from vla_ros.core.decision import Inputs, SpeedMode
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointStateReader
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.rules import is_veto
from vla_ros.core.supervisor import Supervisor
from vla_ros.core.types import ArmStatus, Chunk, CommandMode, FloatArray, JointSample, PerceptionStatus, Source
from vla_ros.data.bag_reader import Bag, BagError, Stored, stamp_ns
from vla_ros.data.recorded import CHUNKS, NS, Recorded, chunk, holds
from vla_ros.data.requests import Asked, Before, before, requests

PRE_ROLL_S = 1.0  # our choice: before the first recorded tick the arm is taken to have stood, long enough for a rearm
AT_REST_RAD_S = 1e-3  # as the supervisor node: a replay begins where the arm was commanded to stand
SAME_RAD = 1e-6  # below: not worth a forward kinematics
HEARTBEAT_ALIVE = 1  # msg/SafetyState
VERDICT_ACCEPTED = 1  # msg/PolicyStatus


@dataclass
class Supervised:
    """What the supervisor commanded and vetoed. Arrays over the k ticks that were replayed."""

    tick_ns: list[int] = field(default_factory=list)
    q_rad: list[FloatArray] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)  # SafetyEvents by rule
    holds: Counter[str] = field(default_factory=Counter)  # how often HOLD or worse began, by reason
    notes: list[str] = field(default_factory=list)


class Resupervisor:
    """One episode through one supervisor. `chunk_of` makes the chunk that is fed in place of a recorded message."""

    def __init__(
        self,
        bag: Bag,
        contract: Contract,
        recorded: Recorded,
        chunk_of: Callable[[Any, float, Source], Chunk] = lambda m, now_s, source: chunk(m, now_s, source=source),
    ) -> None:
        self._bag, self._contract, self._recorded, self._chunk_of = bag, contract, recorded, chunk_of
        self._machine = Supervisor(contract, Kinematics(contract), writer_id=1)
        self._reader = JointStateReader(contract)
        self._token = 0
        self._arm: ArmStatus | None = None
        self._perception: PerceptionStatus | None = None
        self._speed: SpeedMode | None = None
        self._instruction_id = 0
        self._heartbeat = False

    def run(self) -> Supervised:
        recorded, done = self._recorded, Supervised()
        first = next(
            (k for k, c in enumerate(recorded.commands) if float(np.abs(c.velocity).max()) < AT_REST_RAD_S), None
        )
        if first is None:
            raise BagError(f"{self._bag.folder}: the arm is never commanded to stand: there is no tick to begin from")
        last = self._last_tick(first, done)
        if first:
            done.notes.append(
                f"the replay begins {(recorded.tick_ns[first] - recorded.tick_ns[0]) / NS:.2f} s late, at rest"
            )
        known = before(recorded, first)
        self._stand_before(first, known)
        asked = requests(recorded, first, known)
        states: list[Any] = []
        for k in range(first, last):
            inputs = self._inputs(k, asked.get(k, Asked()))
            decision = self._machine.update(recorded.tick_ns[k] / NS, inputs)
            states.append(decision)
            done.events.update(event.rule for event in decision.events if is_veto(event.rule))
            if decision.command is not None:
                done.tick_ns.append(recorded.tick_ns[k])
                done.q_rad.append(decision.command.q_rad)
            for reply in decision.replies:
                if not reply.accepted:
                    done.notes.append(
                        f"refused at {(recorded.tick_ns[k] - self._bag.start_ns) / NS:.2f} s: {reply.reason}"
                    )
        done.holds = holds(states)
        accepted = states[-1].counters.chunks_accepted if states else 0
        if accepted < (then := self._accepted_then(first, last)) - 1:  # one may be on its way at either end
            done.notes.append(f"{accepted} chunks were accepted, {then} then: the recording may lack some")
        return done

    def _accepted_then(self, first: int, last: int) -> int:
        """Between the two ticks."""
        ticks = self._recorded.tick_ns
        counts = [
            state.chunks_accepted
            for state in self._recorded.messages.get("safety_state", [])
            if ticks[first] <= stamp_ns(state.stamp) <= ticks[last - 1]
        ]
        return int(counts[-1] - counts[0]) if counts else 0

    def _last_tick(self, first: int, done: Supervised) -> int:
        for state in self._recorded.messages.get("safety_state", []):
            at_ns = stamp_ns(state.stamp)
            if state.phase == "moving" and state.instruction_id == 0 and at_ns > self._recorded.tick_ns[first]:
                done.notes.append(
                    f"the replay ends at {(at_ns - self._bag.start_ns) / NS:.2f} s, where a planned move begins"
                )
                return bisect.bisect_left(self._recorded.tick_ns, at_ns)
        return len(self._recorded.tick_ns)

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _stand_before(self, first: int, known: Before) -> None:
        """The arm stood where it was commanded to; it had been rearmed, unless the recording begins in a stop; who
        drove then, drives, and what the policy worked on is open."""
        command, first_ns = self._recorded.commands[first], self._recorded.tick_ns[first]
        ids = [m.instruction_id for m in self._recorded.messages.get("instruction", []) if m.instruction_id > 0]
        ids[:0] = [known.opened[0]] if known.opened else []
        kept = known.opened if known.accepted else None
        period_ns = round(self._contract.period_s * NS)
        ticks = round(PRE_ROLL_S * NS) // period_ns
        q, n = np.asarray(command.position, dtype=np.float64), self._contract.n_joints
        for k in range(ticks, 0, -1):
            now_s = (first_ns - k * period_ns) / NS
            arm = ArmStatus(True, False, "", 0, now_s) if "arm_state" in self._recorded.messages else None
            rearm = k == 4 and command.mode != CommandMode.STOP
            instructs = ((self._next_token(), kept[1], 0),) if k == 3 and kept else ()
            verdicts = ((kept[0], True, ""),) if k == 2 and kept else ()
            sources = ((self._next_token(), known.source),) if k == 1 and known.source is not Source.POLICY else ()
            heartbeat = now_s if self._contract.operator_heartbeat_required else None
            self._machine.update(
                now_s,
                Inputs(
                    joints=JointSample(q, np.zeros(n), float(command.gripper_width), now_s),
                    rearms=(self._next_token(),) if rearm else (),
                    instructs=instructs,
                    verdicts=verdicts,
                    sources=sources,
                    policy_instruction_id=ids[0] - 1 if k == ticks and ids else None,
                    heartbeat_at_s=heartbeat,
                    arm=arm,
                ),
            )
            self._arm = arm
        self._heartbeat = self._contract.operator_heartbeat_required

    def _inputs(self, k: int, asked: Asked) -> Inputs:
        recorded = self._recorded
        now_ns = recorded.tick_ns[k]
        after_ns = recorded.tick_ns[k - 1] if k else now_ns - round(self._contract.period_s * NS)
        now_s = now_ns / NS
        heard = [
            (at_ns, self._chunk_of(m, now_s, source))
            for name, source in CHUNKS.items()
            for at_ns, m in recorded.heard(name, after_ns, now_ns)
        ]
        verdicts = tuple(
            (m.instruction_id, m.verdict == VERDICT_ACCEPTED, m.reason)
            for m in recorded.between("policy_status", after_ns, now_ns)
            if m.verdict
        )
        if "policy_status" not in recorded.messages and self._instruction_id:  # nobody recorded the judgement
            verdicts, self._instruction_id = ((self._instruction_id, True, ""),), 0
        for m in recorded.between("arm_state", after_ns, now_ns):
            self._arm = wire.arm_status(m, now_s)
        for m in recorded.between("perception_status", after_ns, now_ns):
            self._perception = wire.perception_status(m, now_s)
        for m in recorded.between("reduced_speed", after_ns, now_ns):
            self._speed = SpeedMode(bool(m.data), now_s)
        for m in recorded.between("safety_state", after_ns, now_ns):
            self._heartbeat = m.heartbeat == HEARTBEAT_ALIVE
        instructs: tuple[tuple[object, str | bytes, int], ...] = ()
        if asked.instruct is not None:
            self._instruction_id, text = asked.instruct
            instructs = ((self._next_token(), text, 0),)
        return Inputs(
            joints=self._joints(now_ns),
            chunks=tuple(one for _, one in sorted(heard, key=lambda pair: pair[0])),
            interrupts=int(asked.interrupt),
            rearms=(self._next_token(),) if asked.rearm else (),
            instructs=instructs,
            verdicts=verdicts,
            closes=(asked.close,) if asked.close else (),
            sources=((self._next_token(), asked.source),) if asked.source is not None else (),
            heartbeat_at_s=now_s if self._heartbeat else None,
            speed_mode=self._speed,
            arm=self._arm,
            perception=self._perception,
        )

    def _joints(self, now_ns: int) -> JointSample | None:
        name = self._contract.arm.joint_state_topic
        index = bisect.bisect_right(self._recorded.log_ns[name], now_ns) - 1
        if index < 0:
            return None
        message: Stored = self._recorded.messages[name][index]
        m = self._bag.decode(message)
        try:
            return self._reader.read(m.name, m.position, m.velocity, message.log_ns / NS, m.effort)
        except Invalid:  # as in the node: counts as missing
            return None


def distance(contract: Contract, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[float, float]:
    """(rad, mm): the greatest distance between two poses of the arm, of any joint and of the tool."""
    kinematics, worst_rad, worst_mm = Kinematics(contract), 0.0, 0.0
    for q, other in pairs:
        off = float(np.abs(q - other).max())
        if not math.isfinite(off):
            return math.inf, math.inf
        worst_rad = max(worst_rad, off)
        if off > SAME_RAD:
            _, p0 = kinematics.tool_pose(q)
            _, p1 = kinematics.tool_pose(other)
            worst_mm = max(worst_mm, 1e3 * float(np.linalg.norm(p0 - p1)))
    return worst_rad, worst_mm
