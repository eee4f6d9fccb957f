"""Bags become a LeRobot data set: choose, extract each in a process of its own, join, rename.

Everything is made in `.<name>.part` beside the target, which appears whole or not at all. A run that was killed goes on
where it stood when it is started again with the same bags and options.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_ros import __version__
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid, VlaError
from vla_ros.core.rules import is_veto
from vla_ros.data import episode as episodes
from vla_ros.data import parallel
from vla_ros.data.audit import audit
from vla_ros.data.bag_reader import Bag, require_contract
from vla_ros.data.disk import sync_folder
from vla_ros.data.episode import Episode
from vla_ros.data.extract import Extract, extract, fulfilled
from vla_ros.data.judge import Verdict, facts, judge
from vla_ros.data.lerobot import assemble
from vla_ros.data.lerobot_format import DatasetError
from vla_ros.data.lerobot_part import PART_JSON, PartWriter

JOB, PARTS, WHOLE = "job.json", "parts", "dataset"
GRADES = ("A", "B", "C", "D")  # of the audit (`findings.grade`), best first


@dataclass(frozen=True, slots=True)
class Selection:
    """Which episodes are taken. Empty or None: this does not matter."""

    success: bool | None = True  # fulfilled, as `extract.fulfilled` says; None: either
    outcomes: tuple[str, ...] = ()
    grade: str = ""  # of the audit, at least
    events_max: int | None = None  # vetoes (SafetyEvents, see `is_veto`) in one episode
    without: tuple[str, ...] = ()  # rules of SafetyEvents that must not have fired
    judged: Verdict = Verdict.WRONG  # worst verdict of the judge that is taken

    def validate(self) -> None:
        unknown = [name for name in self.outcomes if name not in episodes.OUTCOMES[1:]]
        if unknown:
            raise Invalid("outcome", unknown[0], ", ".join(episodes.OUTCOMES[1:]))
        if self.grade and self.grade not in GRADES:
            raise Invalid("grade", self.grade, ", ".join(GRADES))
        if self.events_max is not None and not self.events_max >= 0:
            raise Invalid("max-events", self.events_max, ">= 0")

    def against(self, episode: Episode) -> str:
        """Why it is left out, known before anything is read; empty: it is not."""
        if self.success is not None and episode.success is None and not episode.outcome:
            return "whether it succeeded is not known"
        if self.success is not None and fulfilled(episode) != self.success:
            return f"success is {fulfilled(episode)}"
        if self.outcomes and episode.outcome not in self.outcomes:
            return f"outcome is {episode.outcome or 'unknown'}"
        return ""

    def against_events(self, events: dict[str, int]) -> str:
        fired = [rule for rule in self.without if rule in events]
        if fired:
            return f"SafetyEvent {fired[0]}, {events[fired[0]]} times"
        total = sum(count for rule, count in events.items() if is_veto(rule))
        return f"{total} vetoes" if self.events_max is not None and total > self.events_max else ""


@dataclass(frozen=True, slots=True)
class Options:
    robot: str = "panda"
    lossless: bool = False
    gap_max_s: float | None = None  # None: the contract's image timeout
    selection: Selection = field(default_factory=Selection)

    def validate(self) -> None:
        self.selection.validate()
        if self.gap_max_s is not None and not 0.0 < self.gap_max_s <= 60.0:
            raise Invalid("max-gap", self.gap_max_s, "above 0, up to 60 [s]")


@dataclass(frozen=True, slots=True)
class Job:
    bag: str
    part: str
    options: Options


def find_bags(given: Sequence[Path]) -> list[Path]:
    """Bags, and the bags below folders that are none, by name. Raises DatasetError where there is nothing."""
    found: list[Path] = []
    for path in given:
        if (path / episodes.METADATA).is_file() or list(path.glob("*.mcap")):
            found.append(path)
            continue
        inside = (p.parent for p in path.glob(f"*/{episodes.METADATA}"))
        below = sorted(folder for folder in inside if not folder.name.endswith(episodes.PART))
        if not below:
            raise DatasetError(f"{path}: no bag, and no folder of bags ({episodes.METADATA} and one MCAP file each)")
        found += below
    return list(dict.fromkeys(found))


def export(
    bags: Sequence[Path],
    out: Path,
    options: Options,
    workers: int = 1,
    ray: str = "",
    skip_bad: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes `out`. Returns what was done: episodes, frames, seconds, left out and why.

    Raises DatasetError, naming every bag that cannot be used (with `skip_bad` these are left out), when `out` exists,
    or when nothing is left.
    """
    options.validate()
    if out.exists():
        raise DatasetError(f"{out} exists already; choose another name, or remove it")
    contract = _contract(options.robot)
    left_out: dict[str, str] = {}
    bad: dict[str, str] = {}
    chosen: list[Path] = []
    for path in find_bags(bags):
        try:
            reason = _look(path, contract, options.selection)
        except VlaError as error:
            bad[str(path)] = str(error)
            continue
        if reason:
            left_out[str(path)] = reason
        else:
            chosen.append(path)
    _complain(bad, skip_bad)
    work = out.with_name(f".{out.name}{episodes.PART}")
    _prepare(work, chosen, contract, options)
    jobs = [Job(str(path), str(work / PARTS / f"{index:06d}"), options) for index, path in enumerate(chosen)]
    done = parallel.run(make_part, jobs, workers, ray, label="episodes", quiet=quiet)
    summaries: list[dict[str, Any]] = []
    for job, outcome in zip(jobs, done, strict=True):
        if outcome.error:
            bad[job.bag] = outcome.error
        elif outcome.value is not None and outcome.value["left_out"]:
            left_out[job.bag] = outcome.value["left_out"]
        elif outcome.value is not None:
            summaries.append(outcome.value)
    try:
        _complain(bad, skip_bad)
        if not summaries:
            raise DatasetError("no episode is left" + "".join(f"\n  - {b}: {why}" for b, why in left_out.items()))
        left_out |= bad
        ours = {"lossless": options.lossless, "options": _plain(options), "left_out": left_out}
        whole = work / WHOLE
        shutil.rmtree(whole, ignore_errors=True)
        assemble([Path(s["part"]) for s in summaries], whole, contract, options.lossless, ours)
        if out.exists():  # made by someone else meanwhile
            raise DatasetError(f"{out} exists already; choose another name, or remove it")
        whole.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # a process that is killed does not come here, and can go on
    totals = {key: sum(s[key] for s in summaries) for key in ("frames", "live", "equal", "refused")}
    return {
        "out": str(out),
        "episodes": len(summaries),
        **totals,
        "seconds": round(sum(s["seconds"] for s in summaries), 3),
        "left_out": left_out,
    }


def make_part(job: Job) -> dict[str, Any]:
    """One episode, in whatever process. What is there already is not made again."""
    part, options = Path(job.part), job.options
    if not (part / PART_JSON).is_file():
        bag, contract = Bag.open(job.bag), _contract(options.robot)
        judgement = judge(bag.episode(), facts(bag, contract))
        if judgement.verdict > options.selection.judged:
            return {"left_out": f"judged {judgement.verdict.name.lower()}: {'; '.join(judgement.reasons)}"}
        grade = audit(bag, contract).grade if options.selection.grade else ""
        if grade and GRADES.index(grade) > GRADES.index(options.selection.grade):
            return {"left_out": f"grade {grade}"}
        with PartWriter(part, contract, options.lossless) as writer:
            found = extract(bag, contract, writer.add, options.gap_max_s)
            reason = options.selection.against_events(dict(found.events))
            if reason:
                return {"left_out": reason}
            about = _about(bag, found) | {"judged": judgement.verdict.name.lower(), "judge_score": judgement.score}
            writer.finish(found, about | {"grade": grade})
    facts_of = json.loads((part / PART_JSON).read_text(encoding="utf-8"))
    about = facts_of["about"]
    summary = {key: about[key] for key in ("live", "equal", "refused", "seconds")}
    return {"left_out": "", "part": job.part, "frames": facts_of["frames"], **summary}


def _about(bag: Bag, found: Extract) -> dict[str, Any]:
    """Columns of meta/episodes that are ours. The same in every episode, and never empty of a type."""
    episode = found.episode
    return {
        "bag": bag.folder.name,
        "success": bool(fulfilled(episode)),
        "outcome": episode.outcome,
        "outcome_reason": episode.outcome_reason,
        "operator": episode.operator,
        "policy_hash": episode.policy_hash,
        "seconds": round(float(found.stamp_ns[-1] - found.stamp_ns[0]) * 1e-9, 6),
        "longest_gap_s": round(found.longest_gap_s, 6),
        "human_share": round(float(found.human.mean()), 6),
        "safety_events": sum(found.events.values()),
        "safety_rules": ",".join(found.events),
        "refused": found.refused,
        "live": found.live,
        "equal": found.equal,
    }


def _look(path: Path, contract: Contract, selection: Selection) -> str:
    bag = Bag.open(path)
    require_contract(bag, contract)
    return selection.against(bag.episode())


def _complain(bad: dict[str, str], skip_bad: bool) -> None:
    if bad and not skip_bad:
        lines = "".join(f"\n  - {why}" for why in bad.values())
        raise DatasetError(f"{len(bad)} bag(s) cannot be exported; --skip-bad leaves them out{lines}")


def _prepare(work: Path, chosen: Sequence[Path], contract: Contract, options: Options) -> None:
    """The work folder, with the finished parts of a run that was killed, if it was the same run."""
    files = [(str(p.resolve()), [(f.name, f.stat().st_size) for f in sorted(p.iterdir())]) for p in chosen]
    job = json.dumps([__version__, contract.hash, _plain(options), files])
    record = work / JOB
    if not (record.is_file() and record.read_text(encoding="utf-8") == job):
        shutil.rmtree(work, ignore_errors=True)
        (work / PARTS).mkdir(parents=True)
        record.write_text(job, encoding="utf-8")


def _plain(options: Options) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options)))


@functools.lru_cache(maxsize=4)
def _contract(robot: str) -> Contract:
    return contracts.load(robot)
