"""The eight invariants over many random stories: operators, policies, networks and clocks against one supervisor.

    python benchmarks/safety/invariants.py [--chunks 10000] [--ticks 1000000] [--seed 0] [--workers 2]
                                           [--state FILE.jsonl] [--report FILE.md]

`--chunks`: randomised and adversarial chunks, of 27 kinds (`test/core/stories.py`), each into a running motion.
`--ticks`: control ticks of stories that hypothesis draws, the chunks' own not counted. In each tick every invariant of
the safety specification is checked by the class that checks the tests' own loops (`test/core/core_invariants.py`).

Prints one JSON object; exit code 1 on a violation, which is named with the seed that repeats it:
`python -c "from stories import play; print(play('any', 123, 700))"` in `test/core`. With `--state` every finished block
is kept, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test" / "core"))
from resume import State
from stories import KINDS, Told, play

from vla_ros.data.disk import write_whole

STORY_TICKS = 700  # seven seconds, 0.7 of which pass before anything moves
BLOCK_TICKS = 20 * STORY_TICKS
BLOCK_CHUNKS = 250


@dataclass(frozen=True)
class Block:
    """What one process does before it reports. `seed` is drawn from the run's seed and the block's number."""

    number: int
    goal: str  # what is counted: "chunks" or "ticks"
    count: int
    seed: int


def blocks(chunks: int, ticks: int, seed: int) -> Iterator[Block]:
    number = 0
    for goal, total, size in (("chunks", chunks, BLOCK_CHUNKS), ("ticks", ticks, BLOCK_TICKS)):
        for first in range(0, total, size):
            drawn = hashlib.sha256(f"{seed} {number}".encode()).digest()
            yield Block(number, goal, min(size, total - first), int.from_bytes(drawn[:4], "big"))
            number += 1


def tell(block: Block) -> dict[str, Any]:
    """Play the stories of one block. Runs in a worker process."""
    started_s = time.perf_counter()
    told: list[Told] = []
    if block.goal == "chunks":
        while sum(sum(t.strange.values()) for t in told) < block.count:
            told.append(play("chunks", (block.seed + len(told)) % 2**32, STORY_TICKS))
    else:

        @hypothesis.seed(block.seed)
        @hypothesis.settings(
            max_examples=-(-block.count // STORY_TICKS),
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=tuple(HealthCheck),
        )
        @hypothesis.given(kind=st.sampled_from(tuple(KINDS)), seed=st.integers(0, 2**32 - 1))
        def stories(kind: str, seed: int) -> None:
            told.append(play(kind, seed, STORY_TICKS))

        stories()
    strange, reasons = Counter[str](), Counter[str]()
    for t in told:
        strange.update(t.strange)
        reasons.update(t.reasons)
    return asdict(block) | {
        "stories": len(told),
        "ticks": sum(t.ticks for t in told),
        "strange": dict(strange),
        "accepted": sum(t.accepted for t in told),
        "reasons": dict(reasons),
        "violations": [t.violation for t in told if t.violation],
        "s": round(time.perf_counter() - started_s, 2),
    }


def sum_up(done: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The JSON object."""
    reasons, sent = Counter[str](), Counter[str]()
    for block in done:
        reasons.update(block["reasons"])
        sent.update(block["strange"])
    adversarial = [block for block in done if block["goal"] == "chunks"]
    return {
        "seed": seed,
        "chunks": {
            "sent": sum(sum(block["strange"].values()) for block in adversarial),
            "kinds": len(sent),
            "ticks": sum(block["ticks"] for block in adversarial),
            "elsewhere": sum(sum(b["strange"].values()) for b in done if b["goal"] == "ticks"),
        },
        "ticks": sum(block["ticks"] for block in done if block["goal"] == "ticks"),
        "stories": sum(block["stories"] for block in done),
        "chunks_accepted": sum(block["accepted"] for block in done),
        "reasons_seen": dict(reasons.most_common()),
        "violations": sorted(line for block in done for line in block["violations"]),
        "process_s": round(sum(block["s"] for block in done), 1),
    }


def table(result: dict[str, Any]) -> str:
    chunks = result["chunks"]
    kinds = ", ".join(f"`{reason or 'none'}`" for reason in result["reasons_seen"])
    strange = f"randomised and adversarial chunks, {chunks['kinds']} kinds"
    lines = [
        f"Made by `python benchmarks/safety/invariants.py --seed {result['seed']}`: {result['stories']:,} stories, "
        f"{result['process_s']:,} s of one core.",
        "",
        "| what | number | violations |",
        "|---|---|---|",
        f"| {strange} | {chunks['sent']:,} | {_broken(result, True)} |",
        f"| hypothesis ticks | {result['ticks']:,} | {_broken(result, False)} |",
        "",
        f"{result['chunks_accepted']:,} chunks were taken over and followed. Reasons that were in force: {kinds}.",
    ]
    return "\n".join([*lines, *(f"* {line}" for line in result["violations"])]) + "\n"


def _broken(result: dict[str, Any], chunks: bool) -> int:
    return sum(line.startswith("chunks,") is chunks for line in result["violations"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--ticks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--state", type=Path, help="keeps every finished block; the same command goes on from it")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    options = parser.parse_args(argv)
    if not (options.chunks >= 0 and options.ticks >= 0 and options.seed >= 0 and options.workers >= 1):
        parser.error("--chunks, --ticks, --seed: at least 0; --workers: at least 1")
    plan = {"chunks": options.chunks, "ticks": options.ticks, "seed": options.seed}
    state = State(options.state, plan)
    known = {block["number"] for block in state.done}
    todo = [block for block in blocks(**plan) if block.number not in known]
    for told in run(todo, len(known), options.workers):
        state.keep(told)
    result = sum_up(state.done, options.seed)
    print(json.dumps(result))
    if options.report is not None:
        write_whole(options.report, table(result))
    return 1 if result["violations"] else 0


def run(todo: list[Block], finished: int, workers: int) -> Iterator[dict[str, Any]]:
    """Results as they come, with a progress bar. One worker: in this process."""
    columns = (TextColumn("blocks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=finished + len(todo), completed=finished)
        if workers == 1:
            for block in todo:
                yield tell(block)
                progress.advance(bar)
            return
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for job in as_completed([pool.submit(tell, block) for block in todo]):
                yield job.result()
                progress.advance(bar)


if __name__ == "__main__":
    sys.exit(main())
