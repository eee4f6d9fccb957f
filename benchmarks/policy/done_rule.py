"""When is a task done? Plays episodes that the policy cannot end, and asks afterwards when each rule would have.

    python benchmarks/policy/done_rule.py --policy RUN_OR_FOLDER --runtime torch|int8 --results done.jsonl --episodes 60

The rule that runs (live and in process: `vla_ros/core/task.py`) wants the probability above 0.9 for 0.5 s, and then arm
and gripper at rest. A rule is wrong where the task is not fulfilled when the arm would have settled; its recall is the
share of the fulfilled episodes that it ends. Episodes are kept in the results file: a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ablations_table import markdown

from vla_ros.core import contract as contracts
from vla_ros.core import task as tasks_of_supervisor
from vla_ros.policy.runtime import PolicyOutput
from vla_ros.training.evaluate import RUNTIMES, load, play, trials
from vla_ros.training.rollout import Rollout
from vla_ros.training.scores import wilson

ABOVE = (0.8, 0.9, 0.95, 0.98)
FOR_S = (0.5, 0.75, 1.0, 1.5)
SETTLES_S = 0.4  # from the decision to arm and gripper at rest: a guess: a brake and 0.2 s
HEADER = ("above", "for (s)", "false done", "95 % interval", "recall", "95 % interval", "later by (s)")


class Watched:
    """A policy, and what was true of the world at each of its answers: (probability, fulfilled)."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.world, self.log = policy, None, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def infer(self, *given: Any, **named: Any) -> PolicyOutput:
        output = self._policy.infer(*given, **named)
        self.log.append((output.done_probability, bool(self.world.outcome().success)))
        return output


def ends(log: list[tuple[float, bool]], spacing_s: float, above: float, for_s: float) -> tuple[float, bool] | None:
    """When a rule ends an episode [s], and whether the task is fulfilled once the arm has settled."""
    since = None
    for k, (probability, _) in enumerate(log):
        since = None if probability <= above else k if since is None else since
        if since is not None and (k - since) * spacing_s >= for_s:
            settled = min(len(log) - 1, k + round(SETTLES_S / spacing_s))
            return k * spacing_s, log[settled][1]
    return None


def rows(logs: list[list[tuple[float, bool]]], spacing_s: float) -> list[tuple[str, ...]]:
    """Of every rule. `later by`: the median against the rule that runs."""
    usual = [ends(log, spacing_s, tasks_of_supervisor.DONE_ABOVE, tasks_of_supervisor.DONE_FOR_S) for log in logs]
    made = []
    for above in ABOVE:
        for for_s in FOR_S:
            found = [ends(log, spacing_s, above, for_s) for log in logs]
            false = sum(end is not None and not end[1] for end in found)
            could = [end for end, log in zip(found, logs, strict=True) if any(true for _, true in log[-3:])]
            right = sum(end is not None and end[1] for end in could)
            both = sorted(a[0] - b[0] for a, b in zip(found, usual, strict=True) if a and b)
            spans = [f"{low:.1%} to {high:.1%}" for low, high in (wilson(false, len(logs)), wilson(right, len(could)))]
            shares = [f"{false} of {len(logs)}", f"{right} of {len(could)}"]
            later = f"{both[len(both) // 2]:.2f}" if both else ""
            made.append((f"{above}", f"{for_s}", shares[0], spans[0], shares[1], spans[1], later))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="policy folder or, with --runtime torch, a run; default: the shipped one")
    parser.add_argument("--runtime", choices=RUNTIMES, default="int8")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5000)
    a = parser.parse_args()
    lines = a.results.read_text().splitlines() if a.results.is_file() else []
    played = {entry["seed"]: entry["log"] for entry in map(json.loads, lines)}
    contract = contracts.load("panda")
    policy = Watched(load(a.policy, contract, a.runtime))
    rollout = Rollout(contract, policy)  # type: ignore[arg-type]
    policy.world = rollout.world
    usual = tasks_of_supervisor.DONE_ABOVE
    for trial in trials(a.episodes, a.seed):
        if trial.seed in played:
            continue
        policy.log = []
        tasks_of_supervisor.DONE_ABOVE = 2.0  # no probability is: nothing ends it but its success, or the time limit
        try:
            play(trial, rollout)
        finally:
            tasks_of_supervisor.DONE_ABOVE = usual
        played[trial.seed] = policy.log
        with a.results.open("a") as file:
            file.write(json.dumps({"seed": trial.seed, "family": trial.family, "log": policy.log}) + "\n")
    spacing_s = rollout._execution.spacing_s(contract)
    print(markdown(HEADER, rows(list(played.values()), spacing_s)))


if __name__ == "__main__":
    main()
