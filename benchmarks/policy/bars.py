"""Every number that a policy of the six families must reach, in one resumable run. Prints a Markdown table.

    python benchmarks/policy/bars.py --policy DIR --results bars.jsonl                the whole table, cheap rows first
    python benchmarks/policy/bars.py --policy DIR --results bars.jsonl --table        what is there so far
    ... --only normal,swap    --max-minutes 30    --episodes 20    --json FILE (what `vla policy card` reads)

Episodes are appended to the results, some at a time: the same command goes on where it was interrupted, and more
episodes build on fewer. The first line of the file says which policy it is about; another one is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bars_table import LIVE, as_json, markdown, rows

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.policy.manifest import read
from vla_ros.training.evaluate import Episode, Execution, Trial, evaluate, trials

BATCH = 20  # episodes that are written together, and between two looks at the clock
LIVE_EPISODES = 100


@dataclasses.dataclass(frozen=True)
class Condition:
    """How a set of episodes is played; every condition has the same seeds."""

    name: str
    execution: Execution = dataclasses.field(default_factory=Execution)
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict)  # options of `trials`


CONDITIONS = (
    Condition("normal"),
    Condition("phrasings", drawn={"phrasings": "heldout"}),
    Condition("pairs", drawn={"pairs": "heldout"}),
    Condition("swap", drawn={"swap": True}),
    Condition("rows 16", Execution(rows_per_inference=16)),
    Condition("rows 8", Execution(rows_per_inference=8)),
    Condition("rows 4", Execution(rows_per_inference=4)),
    Condition("prefix 4", Execution("prefix", 4)),
    Condition("naive 0", Execution("naive", 0)),
    Condition("naive 4", Execution("naive", 4)),
    Condition("rows 1", Execution(rows_per_inference=1)),
)
NAMES = ("bench", *(c.name for c in CONDITIONS), LIVE)


class Results:
    """The file: a header, then one JSON object a line. A line that was cut by a crash is dropped, and played again."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self.episodes: dict[str, dict[tuple[Any, ...], Episode]] = {}
        self.facts: dict[str, Any] = {}
        whole = b""
        for k, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else []):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                break
            if k == 0 and entry != header:
                raise SystemExit(f"{path}: is about {entry}, not {header}; give another --results")
            whole += line
            if "condition" in entry:
                self._keep(entry["condition"], entry["swap"], Episode(**entry["episode"]))
            else:
                self.facts |= entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole or (json.dumps(header) + "\n").encode())

    def _keep(self, condition: str, swap: int | None, episode: Episode) -> None:
        self.episodes.setdefault(condition, {})[_key(episode.seed, swap)] = episode

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def add(self, condition: str, swap: int | None, episode: Episode) -> None:
        self._keep(condition, swap, episode)
        self._append({"condition": condition, "swap": swap, "episode": dataclasses.asdict(episode)})

    def note(self, name: str, facts: Any) -> None:
        self.facts[name] = facts
        self._append({name: facts})

    def has(self, condition: str, trial: Trial) -> bool:
        return _key(trial.seed, trial.swap) in self.episodes.get(condition, {})

    def of(self, episodes: int) -> dict[str, list[Episode]]:
        """The first so many of each condition, in the order of the seeds."""
        return {name: [found[key] for key in sorted(found)][:episodes] for name, found in self.episodes.items()}


def _key(seed: int | tuple[int, ...], swap: int | None) -> tuple[Any, ...]:
    return (seed, -1 if swap is None else swap)


def vla(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "vla_ros.cli.main", *words, "--json"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"vla {' '.join(words)}: exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def play(condition: Condition, results: Results, a: argparse.Namespace, until_s: float) -> None:
    planned = trials(a.episodes, a.seed, **condition.drawn)
    missing = [trial for trial in planned if not results.has(condition.name, trial)]
    while missing and time.monotonic() < until_s:
        batch, missing = missing[:BATCH], missing[BATCH:]
        # In the order of the batch, whatever order they were finished in.
        found = evaluate(batch, policy=a.policy, runtime=a.runtime, execution=condition.execution, workers=a.workers)
        for trial, episode in zip(batch, found, strict=True):
            results.add(condition.name, trial.swap, episode)
        print(f"{condition.name}: {a.episodes - len(missing)} of {a.episodes}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="policy folder; default: the shipped one")
    parser.add_argument("--runtime", default="int8")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", default="", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="start nothing new after that")
    parser.add_argument("--table", action="store_true", help="only print")
    parser.add_argument("--json", type=Path, help="the table for `vla policy card`")
    a = parser.parse_args()
    chosen = [name.strip() for name in a.only.split(",") if name.strip()] or list(NAMES)
    if not set(chosen) <= set(NAMES):
        parser.error(f"--only: allowed are {', '.join(NAMES)}")
    until_s = time.monotonic() + 60 * a.max_minutes
    try:
        folder = paths.policy_folder(a.policy)
        manifest = read(folder, contracts.load("panda").hash)
        header = {
            "policy": manifest.files[manifest.graph].sha256,
            "name": manifest.name,
            "runtime": a.runtime,
            "seed": a.seed,
        }
        results = Results(a.results, header)
        if not a.table:
            if "bench" in chosen and "bench" not in results.facts:
                results.note("bench", vla("bench", "policy", "--policy", str(folder), "--n", "300"))
            for condition in CONDITIONS:
                if condition.name in chosen:
                    play(condition, results, a, until_s)
            if LIVE in chosen and LIVE not in results.facts and time.monotonic() < until_s:
                n = min(a.episodes, LIVE_EPISODES)
                asked = ("--policy", str(folder), "--episodes", str(n), "--seed", str(a.seed))
                results.note(LIVE, vla("eval", "--ros", *asked))
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table = rows(results.of(a.episodes), results.facts, manifest.training)
    if a.json:
        a.json.write_text(json.dumps(as_json(header, table), indent=1))
    print(markdown(table))


if __name__ == "__main__":
    main()
