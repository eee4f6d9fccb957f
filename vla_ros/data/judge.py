"""Does the sentence of an episode describe what happened in it? A heuristic that finds labels worth a second look.

It knows, in this order of trust: what the world or a person said (`Episode.success`, `outcome_reason`), which sentence
the arm was really told, what the policy's own heads said at the end, and what the gripper did. It sees no pictures: the
right motion with the wrong object is found only where the world said so. A person decides; nothing is deleted.
"""

from __future__ import annotations

import enum
import itertools
import re
from dataclasses import dataclass

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Refused
from vla_ros.core.instructions import normalise_text
from vla_ros.data.bag_reader import Bag
from vla_ros.data.episode import Episode
from vla_ros.data.extract import FULFILLED
from vla_ros.sim import tasks

LAST_CHUNKS = 5  # our choice: two thirds of a second of the policy's opinion
UNSURE_BELOW = 0.5  # our choice: a policy that is less sure than this has not seen the task fulfilled
HELD_MIN_M = 0.004  # our choice: fingers closed on something stay at least this far apart
END_NS = 300_000_000  # our choice: over this last part the hand is looked at
ANOTHER_MOVED = re.compile(r"\bthe ([\w ]+?) was moved\b")  # how the simulator names a wrong object


class Verdict(enum.IntEnum):  # order is the rule: the worst one counts
    FITS = 0
    DOUBTFUL = 1
    WRONG = 2


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    score: float  # 0 to 1: how well the sentence fits
    basis: str  # world: success is on record; policy: its own heads; motion: what the gripper did; none
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judge knows of one episode. Empty and None: not known."""

    told: tuple[str, ...] = ()  # sentences the arm was told while it was recorded
    done_probability: float | None = None  # the policy's, at the end
    confidence: float | None = None
    closed_at_s: tuple[float, ...] = ()  # when the gripper was told to close
    opened_at_s: tuple[float, ...] = ()  # to open again
    end_width_m: float | None = None  # measured


def facts(bag: Bag, contract: Contract) -> Facts:
    """Reads small messages only. A topic that is missing is not known."""
    topics = {name: bag.find(name) for name in ("instruction", "action_chunk", "safe_command")}
    wanted = [topic for topic in topics.values() if topic is not None]
    told: dict[str, None] = {}
    opinions: list[tuple[float, float]] = []
    widths: list[tuple[int, float]] = []
    for message in bag.messages(wanted) if wanted else ():
        m = bag.decode(message)
        if message.topic == topics["instruction"]:
            if m.instruction_id:
                told[m.text] = None
        elif message.topic == topics["action_chunk"]:
            opinions.append((float(m.done_probability), float(m.confidence)))
        else:
            widths.append((message.log_ns, float(m.gripper_width)))
    half = 0.5 * (contract.gripper.closed_m + contract.gripper.open_m)
    closed, opened = _switches(widths, half)
    done, sure = np.mean(opinions[-LAST_CHUNKS:], axis=0) if opinions else (None, None)
    return Facts(
        told=tuple(told),
        done_probability=None if done is None else float(done),
        confidence=None if sure is None else float(sure),
        closed_at_s=closed,
        opened_at_s=opened,
        end_width_m=_end_width(bag, contract),
    )


def _switches(widths: list[tuple[int, float]], half_m: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """When the commanded width falls below half of the opening, and when it rises above it again [s from the first]."""
    closed, opened = [], []
    for (_, before), (at_ns, now) in itertools.pairwise(widths):
        if before > half_m >= now:
            closed.append((at_ns - widths[0][0]) * 1e-9)
        elif before <= half_m < now:
            opened.append((at_ns - widths[0][0]) * 1e-9)
    return tuple(closed), tuple(opened)


def _end_width(bag: Bag, contract: Contract) -> float | None:
    topic = bag.find(contract.arm.joint_state_topic)
    found = []
    for message in bag.messages([topic], start_ns=bag.end_ns - END_NS) if topic is not None else ():
        m = bag.decode(message)
        if contract.gripper.joint in m.name:
            found.append(2.0 * float(m.position[list(m.name).index(contract.gripper.joint)]))  # the other mirrors it
    return float(np.median(found)) if found else None


def judge(episode: Episode, known: Facts) -> Judgement:
    """Pure. The score is that of the worst reason; without any evidence it is 0.5 and doubtful."""
    found = [*_said(episode, known), *_happened(episode, known)]
    if not episode.success:  # a world that says yes has seen more than the gripper
        found += _moved(episode, known)
    if episode.success is not None:
        basis = "world"
    elif known.done_probability is not None:
        basis = "policy"
    else:
        basis = "motion" if tasks.parse(episode.text) is not None and known.end_width_m is not None else "none"
    if not found:
        score = 1.0 if episode.success else known.done_probability if basis == "policy" else 0.5
        if basis == "none":
            return Judgement(Verdict.DOUBTFUL, 0.5, basis, ("nothing is known of what happened",))
        return Judgement(Verdict.FITS, float(score or 0.0), basis, ())
    worst = max(verdict for verdict, _, _ in found)
    return Judgement(worst, min(score for _, score, _ in found), basis, tuple(why for _, _, why in found))


Reason = tuple[Verdict, float, str]


def _said(episode: Episode, known: Facts) -> list[Reason]:
    try:
        text = normalise_text(episode.text)
    except Refused as error:
        return [(Verdict.WRONG, 0.0, str(error))]
    others = [told for told in known.told if told.casefold() != text.casefold()]
    if others and len(others) == len(known.told):
        return [(Verdict.WRONG, 0.1, f"the arm was told {others[-1]!r}")]
    return [(Verdict.DOUBTFUL, 0.4, f"the arm was also told {others[-1]!r}")] if others else []


def _happened(episode: Episode, known: Facts) -> list[Reason]:
    found: list[Reason] = []
    another = ANOTHER_MOVED.search(episode.outcome_reason)
    if another and another[1] not in episode.text:
        found.append((Verdict.WRONG, 0.0, f"the {another[1]} was moved"))
    if episode.success is False:
        found.append((Verdict.WRONG, 0.0, episode.outcome_reason or "it was not fulfilled"))
    elif episode.success is None:
        if episode.outcome and episode.outcome not in FULFILLED:
            found.append((Verdict.WRONG, 0.1, f"it ended as {episode.outcome}"))
        done = known.done_probability
        if done is not None and not done >= UNSURE_BELOW:
            found.append((Verdict.DOUBTFUL, max(done, 0.0), f"at the end the policy gave 'done' only {done:.0%}"))
    return found


def _moved(episode: Episode, known: Facts) -> list[Reason]:
    """What picking and putting cannot do without."""
    task = tasks.parse(episode.text)
    if task is None or task.family not in ("pick", "put") or known.end_width_m is None:
        return []
    if not known.closed_at_s:
        return [(Verdict.WRONG, 0.1, "the gripper was never closed")]
    ends_open = bool(known.opened_at_s) and known.opened_at_s[-1] > known.closed_at_s[-1]
    if task.family == "pick" and (ends_open or not known.end_width_m >= HELD_MIN_M):
        return [(Verdict.WRONG, 0.2, "nothing is in the hand at the end")]
    if task.family == "put" and not ends_open:
        return [(Verdict.WRONG, 0.2, "the gripper was not opened again")]
    return []
