"""An episode as a regression test: its pictures and joint states through perception, policy and supervisor, offline.

The recorded pictures become observations as they did live; the policy answers each observation that it answered then,
with the noise that it drew then; the supervisor takes these chunks when it took the recorded ones. What comes out is
compared with the recording, or with what an earlier replay stored.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid, Refused
from vla_ros.core.rules import is_veto
from vla_ros.core.types import ActionSpace, Chunk, FloatArray, Source
from vla_ros.data import recorded as recordings
from vla_ros.data import resupervise
from vla_ros.data.bag_reader import Bag, BagError, require_contract, stamp_ns
from vla_ros.data.disk import write_whole
from vla_ros.data.perceive import Perception
from vla_ros.data.resupervise import Resupervisor, Supervised

if TYPE_CHECKING:
    from vla_ros.policy.runtime import PolicyRuntime

WARM_UP_CALLS = 2  # nodes/policy.py: what the policy's noise generator has given away before the first chunk
FORMAT = 1  # of a baseline file


@dataclass(frozen=True)
class Tolerances:
    """What a difference may be. `share` of all rows must be within `row_mm`, `row_rad`, `grip`."""

    row_mm: float
    row_rad: float
    grip: float
    share: float
    command_mm: float
    command_rad: float
    vetoes: int  # difference of the count, each rule and each reason to hold
    slower: float = 3.0  # factor on the median latency: another machine may be slower, a wrong graph is slower by more
    spare_ms: float = 10.0


# Our choices. A recording was compressed (JPEG), and its messages were heard some milliseconds before or after the
# supervisor heard them; a baseline came from the same bytes, and differs by rounding.
AGAINST_RECORDING = Tolerances(10.0, 0.05, 0.25, 0.95, 10.0, 0.03, 1)
AGAINST_BASELINE = Tolerances(0.5, 0.005, 0.02, 1.0, 0.5, 0.002, 0)


@dataclass
class Answer:
    """One inference. `data` (rows, cols) as in msg/ActionChunk."""

    stamp_ns: int
    data: FloatArray
    done: float


@dataclass
class Replayed:
    """What one episode gives today; also what a baseline file holds."""

    bag: str
    contract_hash: str
    policy_hash: str
    space: int
    answers: list[Answer] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    commands: dict[int, FloatArray] = field(default_factory=dict)  # tick [ns] -> (n,) rad
    events: Counter[str] = field(default_factory=Counter)
    holds: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    missing: int = 0  # recorded chunks whose observation could not be made again


@dataclass(frozen=True)
class Comparison:
    """`differences`: what is beyond its tolerance, in words; empty: the same."""

    figures: dict[str, Any]
    differences: list[str]


def replay(
    bag: Bag, contract: Contract, policy: PolicyRuntime, seed: int = 0, recorded_chunks: bool = False
) -> tuple[Replayed, Replayed]:
    """(now, then): what comes out, and what was recorded. `recorded_chunks`: the supervisor gets those instead.

    Raises `BagError` for another contract or missing topics.
    """
    require_contract(bag, contract)
    recorded = recordings.read(bag, contract)
    messages = recorded.messages.get("action_chunk", [])
    now = Replayed(str(bag.folder), contract.hash, policy.checkpoint_hash, int(contract.action.space))
    then = dataclasses.replace(
        now, policy_hash=bag.custom_data.get("policy_hash", ""), answers=[], inference_ms=[], commands={}, notes=[]
    )
    answered = _infer(bag, contract, policy, messages, recorded.messages.get("instruction", []), seed, now)
    for m in messages:
        then.answers.append(Answer(stamp_ns(m.stamp), _rows(m), float(m.done_probability)))
        then.inference_ms.append(1e3 * float(m.inference_time))
    if recorded.malformed:
        now.notes.append(f"{recorded.malformed} malformed chunks are left out, as in the running supervisor")
    now.missing = len(messages) - len(answered)
    if now.missing:
        now.notes.append(f"{now.missing} of {len(messages)} chunks: their observation cannot be made from the bag")

    def chunk_of(message: Any, now_s: float, source: Source) -> Chunk:
        """What a person proposed stays as it was."""
        answer = answered.get((message.writer_id, message.sequence)) if source is Source.POLICY else None
        said = recordings.chunk(message, now_s, source)
        if recorded_chunks or answer is None:
            return said
        return dataclasses.replace(said, data=answer.data, done_probability=answer.done)

    result = Resupervisor(bag, contract, recorded, chunk_of).run()
    _take(now, result)
    ticks = set(result.tick_ns)
    told = zip(recorded.tick_ns, recorded.commands, strict=True)
    then.commands = {at: np.asarray(c.position, dtype=np.float64) for at, c in told if at in ticks}
    last_ns = result.tick_ns[-1] if result.tick_ns else 0
    then.events = Counter(
        str(e.rule)
        for e in recorded.messages.get("safety_event", [])
        if ticks and min(ticks) <= stamp_ns(e.stamp) <= last_ns and is_veto(e.rule)
    )
    states = recorded.messages.get("safety_state", [])
    then.holds = recordings.holds(s for s in states if ticks and min(ticks) <= stamp_ns(s.stamp) <= last_ns)
    return now, then


def _take(now: Replayed, result: Supervised) -> None:
    now.commands = dict(zip(result.tick_ns, result.q_rad, strict=True))
    now.events, now.holds = result.events, result.holds
    now.notes += result.notes


def _infer(
    bag: Bag, contract: Contract, policy: PolicyRuntime, messages: list[Any], instructions: list[Any], seed: int,
    now: Replayed,
) -> dict[tuple[int, int], Answer]:  # fmt: skip
    """The answers by writer and sequence, each to the observation with the stamp of the recorded chunk."""
    texts = {m.instruction_id: m.text for m in instructions if m.instruction_id > 0}
    texts.setdefault(0, bag.custom_data.get("text", ""))
    wanted = {stamp_ns(m.stamp): m for m in messages}
    noise = _Noise(seed, contract.action.rows, contract.action.cols)
    answered: dict[tuple[int, int], Answer] = {}
    for observation in Perception(bag, contract).observations():
        m = wanted.get(observation.stamp_ns)
        if m is None:
            continue
        text = texts.get(m.instruction_id, texts[0])
        try:
            policy.judge(text)
        except Refused as refusal:
            raise BagError(f"{bag.folder}: the policy refuses {text!r}: {refusal}") from refusal
        output = policy.infer(observation, text, noise.before(m.writer_id, m.sequence))
        answer = Answer(observation.stamp_ns, output.data, output.done_probability)
        answered[m.writer_id, m.sequence] = answer
        now.answers.append(answer)
        now.inference_ms.append(1e3 * output.inference_s)
    return answered


class _Noise:
    """The policy node's generator in the state before a chunk: each inference draws one block of noise."""

    def __init__(self, seed: int, rows: int, cols: int) -> None:
        self._seed, self._shape = seed, (1, rows, cols)
        self._writer, self._next = 0, 0
        self._rng = np.random.default_rng(seed)

    def before(self, writer_id: int, sequence: int) -> np.random.Generator:
        if writer_id != self._writer or sequence < self._next:
            self._rng, self._writer = np.random.default_rng(self._seed), writer_id
            self._next = 1 - WARM_UP_CALLS
        for _ in range(sequence - self._next):
            self._rng.standard_normal(self._shape, dtype=np.float32)
        self._next = sequence + 1
        return self._rng


def _rows(message: Any) -> FloatArray:
    return np.asarray(message.data, dtype=np.float64).reshape(message.rows, message.cols)


# ---------------------------------------------------------------------------------------------- comparing


def compare(now: Replayed, other: Replayed, tolerances: Tolerances, contract: Contract) -> Comparison:
    """`other`: the recording, or a baseline."""
    figures: dict[str, Any] = {"chunks": len(now.answers)}
    wrong: list[str] = []

    def judge(name: str, value: float, limit: float, unit: str) -> None:
        figures[name] = round(value, 4)
        if not value <= limit:
            wrong.append(f"{name.replace('_', ' ')} {value:.4g} {unit}, allowed: {limit:g}")

    theirs = {answer.stamp_ns: answer for answer in other.answers}
    pairs = [(a, theirs[a.stamp_ns]) for a in now.answers if a.stamp_ns in theirs]
    unpaired = len(now.answers) + len(other.answers) - 2 * len(pairs)
    judge("unmatched_chunks", unpaired, (1.0 - tolerances.share) * 2 * max(len(pairs), 1), "")
    if pairs:
        off = _row_differences(pairs, now.space)
        for name, values, limit, unit in zip(
            ("row_mm", "row_rad", "grip"), off, (tolerances.row_mm, tolerances.row_rad, tolerances.grip),
            ("mm", "rad", "of the opening"), strict=True,
        ):  # fmt: skip
            judge(name, float(np.quantile(values, tolerances.share)), limit, unit)
            figures[f"{name}_max"] = round(float(values.max()), 4)
    rad, mm = _command_differences(now, other, contract)
    judge("command_rad", rad, tolerances.command_rad, "rad")
    judge("command_mm", mm, tolerances.command_mm, "mm")
    for name, mine, its in (("vetoes", now.events, other.events), ("holds", now.holds, other.holds)):
        figures[name] = dict(sorted(mine.items()))
        for rule in sorted(mine.keys() | its.keys()):
            if abs(mine[rule] - its[rule]) > tolerances.vetoes:
                wrong.append(f"{name}: {rule} {mine[rule]} times, before {its[rule]}")
    if now.inference_ms and other.inference_ms:
        before = float(np.median(other.inference_ms))
        figures["latency_before_ms"] = round(before, 2)
        figures["latency_p99_ms"] = round(float(np.percentile(now.inference_ms, 99)), 2)
        judge("latency_ms", float(np.median(now.inference_ms)), before * tolerances.slower + tolerances.spare_ms, "ms")
    return Comparison(figures, wrong)


def _row_differences(pairs: list[tuple[Answer, Answer]], space: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """mm, rad and gripper of every row; joint actions have no mm."""
    shapes = {(a.data.shape, b.data.shape) for a, b in pairs}
    if any(a != b for a, b in shapes):
        raise Invalid("rows, cols", [a for a, _ in shapes], f"as before: {[b for _, b in shapes]}")
    off = np.concatenate([a.data - b.data for a, b in pairs])  # (rows of all, cols)
    off = np.where(np.isfinite(off), off, np.inf)
    if space == ActionSpace.TOOL_DELTA:
        mm, rad = 1e3 * np.linalg.norm(off[:, :3], axis=1), np.linalg.norm(off[:, 3:6], axis=1)
    else:
        mm, rad = np.zeros(len(off)), np.abs(off[:, :-1]).max(axis=1)
    return mm, rad, np.abs(off[:, -1])


def _command_differences(now: Replayed, other: Replayed, contract: Contract) -> tuple[float, float]:
    ticks = sorted(now.commands.keys() & other.commands.keys())
    if not ticks:
        return (0.0, 0.0) if not now.commands and not other.commands else (float("inf"), float("inf"))
    return resupervise.distance(contract, [(now.commands[t], other.commands[t]) for t in ticks])


# ---------------------------------------------------------------------------------------------- baseline


def write_baseline(path: Path, now: Replayed) -> None:
    """One JSON file. Raises `Invalid` when it exists."""
    if path.exists():
        raise Invalid("baseline", str(path), "a file that does not exist yet", "Remove it, or choose another name")
    content = {
        "format": FORMAT,
        "bag": now.bag,
        "contract_hash": now.contract_hash,
        "policy_hash": now.policy_hash,
        "space": now.space,
        "answers": [[a.stamp_ns, a.done, a.data.round(6).tolist()] for a in now.answers],
        "inference_ms": [round(ms, 3) for ms in now.inference_ms],
        "commands": {str(at): q.round(6).tolist() for at, q in now.commands.items()},
        "events": now.events,
        "holds": now.holds,
    }
    write_whole(path, json.dumps(content))


def read_baseline(path: Path, contract: Contract) -> Replayed:
    """Raises `BagError` for what is no baseline, or one of another contract."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, allowed: {FORMAT}")
        baseline = Replayed(
            bag=content["bag"],
            contract_hash=content["contract_hash"],
            policy_hash=content["policy_hash"],
            space=content["space"],
            answers=[Answer(at, np.array(data, dtype=np.float64), done) for at, done, data in content["answers"]],
            inference_ms=content["inference_ms"],
            commands={int(at): np.array(q, dtype=np.float64) for at, q in content["commands"].items()},
            events=Counter(content["events"]),
            holds=Counter(content["holds"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BagError(f"{path}: not a baseline of `vla bag replay --write-baseline` ({error})") from error
    if baseline.contract_hash != contract.hash:
        raise BagError(f"{path}: of contract {baseline.contract_hash[:12]}, here {contract.name} {contract.hash[:12]}")
    return baseline
