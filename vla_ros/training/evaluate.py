"""Closed-loop evaluation: which episodes are played, by how many processes. What one episode is: `rollout.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.data import parallel
from vla_ros.policy.runtime import PolicyRuntime
from vla_ros.policy.runtimes import OF_RUNS, RUNTIMES, open_policy
from vla_ros.sim import choices
from vla_ros.sim.tasks import COLOURS, FAMILIES, HELD_OUT_PAIRS, SLOTS, Task, fill, parse, slots_of
from vla_ros.sim.world import World
from vla_ros.training.rollout import CHUNKINGS, TIME_LIMIT_S, Execution, Rollout, command_violations
from vla_ros.training.scores import Episode, paired, report, wilson

SETS = ("trained", "heldout")  # of phrasings, and of pairs of colour and shape
REGIONS = ("any", *SETS)  # of the table, where what is named lies


@dataclass(frozen=True)
class Trial:
    """What one episode asks for. Plain data: it goes to another process."""

    seed: int
    family: str | None = None
    text: str | None = None  # a sentence; otherwise the world chooses a task and a phrasing
    phrasings: str = "trained"
    pairs: str = "trained"
    swap: int | None = None  # 0: the scene's task, where another contrasts with it; 1: that other one
    regions: str = "any"
    means: str | None = None  # a sentence of a known family that says what `text` asks for

    def suits(self, world: World, task: Task) -> bool:
        """Whether the world may draw this task."""
        fits = [choices.with_heldout_pair if self.pairs == "heldout" else choices.with_trained_pairs]
        if self.regions != "any":
            fits.append(choices.in_heldout_region if self.regions == "heldout" else choices.outside_heldout_regions)
        if self.swap is not None:
            fits.append(lambda world, task: bool(choices.contrasting(world, task)))
        return all(fit(world, task) for fit in fits)


@dataclass(frozen=True)
class Setup:
    """What plays the trials. Plain data, too."""

    robot: str
    policy: str | None
    runtime: str
    execution: Execution


_ROLLOUT: tuple[Setup, Rollout] | None = None  # the last one of this process


def _rollout(setup: Setup) -> Rollout:
    global _ROLLOUT
    if _ROLLOUT is None or _ROLLOUT[0] != setup:
        leave()
        contract = contracts.load(setup.robot)
        policy = load(setup.policy, contract, setup.runtime, setup.execution.chunking)
        _ROLLOUT = setup, Rollout(contract, policy, setup.execution)
    return _ROLLOUT[1]


def leave() -> None:
    """Let go of this process's world and its graphics context, which must not outlive the interpreter."""
    global _ROLLOUT
    if _ROLLOUT is not None:
        _ROLLOUT[1].world.close()
        _ROLLOUT = None


def load(policy: str | None, contract: Contract, runtime: str, chunking: str = "naive") -> PolicyRuntime:
    """A policy on one of RUNTIMES. Raises PolicyInvalid."""
    folder = Path(policy or ".") if runtime in OF_RUNS else paths.policy_folder(policy, contract.name)
    if chunking == "guided":
        from vla_ros.policy.guided import load_run_guided

        return load_run_guided(folder, contract)
    return open_policy(folder, contract, runtime)


def play(trial: Trial, rollout: Rollout) -> Episode:
    """One trial."""
    return rollout.run(
        trial.seed,
        trial.family,
        trial.text,
        suitable=trial.suits,
        heldout_phrasing=trial.phrasings == "heldout",
        swap=trial.swap,
        means=trial.means,
    )


def _play_anywhere(asked: tuple[Setup, Trial]) -> Episode:
    """Runs in whatever process."""
    setup, trial = asked
    return play(trial, _rollout(setup))


def trials(
    episodes: int,
    seed: int,
    *,
    family: str | None = None,
    text: str | None = None,
    phrasings: str = "trained",
    pairs: str = "trained",
    regions: str = "any",
    swap: bool = False,
    means: str | None = None,
) -> list[Trial]:
    """Seeds seed, seed + 1, ..., families in turn unless one is named; with `swap` two contrasting sentences in each
    scene. `text` is a sentence, or a template with slots as in `sim.tasks`. `means`: the same in words of a known
    family, where `text` is in new ones, see `meanings`. Raises ValueError for what does not go together."""
    if means is not None:
        if text is None or family or swap or (phrasings, regions) != ("trained", "any"):
            raise ValueError("means goes with text and pairs only")
        asked = meanings(text, means, pairs == "heldout")
        order = np.random.default_rng([seed, 5]).permutation(len(asked))
        chosen = [asked[order[n % len(asked)]] for n in range(episodes)]
        return [Trial(seed + n, None, said, pairs=pairs, means=meant) for n, (said, meant) in enumerate(chosen)]
    names = [family] if family else list(FAMILIES)
    if text is not None:
        task = parse(concrete(text, np.random.default_rng(seed)) if "{" in text else text)
        names = [task.family] if task else names
        if regions != "any":
            raise ValueError(f"regions is {regions}, but the text says what is named: leave one of them out")
    if "heldout" in (pairs, regions):
        names = [name for name in names if FAMILIES[name].shapes]
        if not names:
            raise ValueError(f"pairs or regions is heldout, but family {family!r} names no object")
    scenes = [k // 2 if swap else k for k in range(episodes)]
    planned = []
    for k, n in enumerate(scenes):
        said = text
        if text is not None and "{" in text:
            said = concrete(text, np.random.default_rng([seed + n, 4]), pairs == "heldout")
        planned.append(Trial(seed + n, names[n % len(names)], said, phrasings, pairs, k % 2 if swap else None, regions))
    return planned


def check(execution: Execution, runtime: str, robot: str) -> None:
    """Raises ValueError where they do not go together."""
    execution.validate(contracts.load(robot).action.rows)
    if execution.chunking == "guided" and runtime != "torch":
        raise ValueError(f"chunking is guided, runtime is {runtime!r}, allowed: torch; the graphs have no gradient")


def evaluate(
    planned: Sequence[Trial],
    *,
    robot: str = "panda",
    policy: str | None = None,
    runtime: str = "int8",
    execution: Execution | None = None,
    workers: int = 1,
    ray: str = "",
    progress: Callable[[Episode], None] | None = None,
    console: Console | None = None,
) -> list[Episode]:
    """Play trials, several at a time, in processes or as Ray tasks; a worker that dies costs its trial another attempt.
    `console`: shows a bar. Raises ValueError for an execution that this runtime cannot do, and parallel.Failed for a
    policy that cannot be loaded."""
    execution = execution or Execution()
    check(execution, runtime, robot)
    if policy and Path(policy).is_dir():
        policy = str(Path(policy).absolute())  # a worker may stand elsewhere
    asked = [(Setup(robot, policy, runtime, execution), trial) for trial in planned]
    played = parallel.stream(_play_anywhere, asked, workers, ray, "episodes", quiet=console is None, console=console)
    episodes: dict[int, Episode] = {}
    try:
        for index, episode in parallel.values(played):
            episodes[index] = episode
            if progress is not None:
                progress(episode)
    finally:
        leave()
    return [episodes[index] for index in range(len(asked))]


def meanings(text: str, means: str, heldout_pair: bool = False) -> list[tuple[str, str]]:
    """Every (text, meaning) that two templates of the same slots make, for objects that may be taught, or that are held
    out. Words are the plain ones: a new sentence is known word for word. Raises ValueError where `means` names no task
    or `text` has a slot that it lacks."""
    if not slots_of(text) <= slots_of(means):
        raise ValueError(f"text {text!r} has slots that its meaning {means!r} lacks")
    example = {slot: words[-1] if slot.endswith("2") else words[0] for slot, words in SLOTS.items()}
    task = parse(means.format(**example))
    if task is None:
        raise ValueError(f"{means!r} names no task of the table-top")
    if not slots_of(means):
        return [(text, means)]
    family, targets = FAMILIES[task.family], FAMILIES[task.family].form(task.target).targets
    pairs = [pair for pair in itertools.product(COLOURS, family.shapes) if (pair in HELD_OUT_PAIRS) == heldout_pair]
    tasks = [Task(family.name, *pair, target) for pair in pairs or [(None, None)] for target in targets]
    made = [(fill(text, t), fill(means, t)) for t in tasks if t.base is None or t.base not in (t.pair, *HELD_OUT_PAIRS)]
    return list(dict.fromkeys(made))


def concrete(template: str, rng: np.random.Generator, heldout_pair: bool = False) -> str:
    """A sentence that a template with slots makes: what they name is drawn. Raises ValueError if that is no task."""
    example = {slot: words[-1] if slot.endswith("2") else words[0] for slot, words in SLOTS.items()}
    task = parse(template.format(**example))
    if task is None:
        raise ValueError(f"{template!r} names no task of the table-top")
    family, targets = FAMILIES[task.family], FAMILIES[task.family].form(task.target).targets
    pairs = [pair for pair in itertools.product(COLOURS, family.shapes) if (pair in HELD_OUT_PAIRS) == heldout_pair]
    while True:
        pair = pairs[int(rng.integers(len(pairs)))] if pairs else (None, None)
        drawn = Task(family.name, *pair, targets[int(rng.integers(len(targets)))])
        if drawn.base != drawn.pair or drawn.base is None:
            break
    return fill(template, drawn, rng)


__all__ = [
    "CHUNKINGS",
    "REGIONS",
    "RUNTIMES",
    "SETS",
    "TIME_LIMIT_S",
    "Episode",
    "Execution",
    "Rollout",
    "Setup",
    "Trial",
    "check",
    "command_violations",
    "evaluate",
    "meanings",
    "paired",
    "report",
    "trials",
    "wilson",
]
