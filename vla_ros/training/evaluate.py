"""Closed-loop evaluation in one process, in fake time, as fast as the machine allows.

The same observation builder, supervisor and arm controller as in the live graph run here; only the messages between
them are left out, and the delays that messages, rendering and inference cause are added as numbers. The policy gets
images, joint state and text. The world's truth is used for the verdict alone.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_ros import paths
from vla_ros.arm.controller import ArmController
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import Refused
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.supervisor import Inputs, Supervisor
from vla_ros.core.types import Chunk, Command, JointSample
from vla_ros.policy.runtime import PolicyRuntime
from vla_ros.policy.runtime import load as load_policy
from vla_ros.sim import choices, verdict
from vla_ros.sim.scene import TIMESTEP_S
from vla_ros.sim.tasks import COLOURS, FAMILIES, HELD_OUT_PAIRS, SLOTS, Task, fill, parse, sentence
from vla_ros.sim.world import World

TIME_LIMIT_S = 15.0  # of one episode
LINGER_S = 4.0  # a task that stays fulfilled this long ends the episode even if the policy never says so
CHUNK_DELAY_S = 0.060  # from the shutter to the supervisor: rendering, two hops, inference; measured in the live graph
COMMAND_DELAY_TICKS = 1  # supervisor -> arm controller -> servo
START_S = 1.0e3  # fake steady clock at the start of an episode; anything positive
REARM_TICK, INSTRUCT_TICK = 2, 6  # the arm controller must have seen a command before the rearm
WRITER_ID = 1
SETS = ("trained", "heldout")  # of phrasings, and of pairs of colour and shape
RUNTIMES = ("int8", "fp32", "torch")  # the folder's own graph, its float graph, a training run
FLOAT_GRAPH = "policy.fp32.onnx"


@dataclass
class Episode:
    """What happened in one episode. Times in seconds of simulated time."""

    seed: int | tuple[int, ...]
    family: str
    text: str
    success: bool
    wrong_object: bool
    done: bool  # the policy said so, and the arm had settled
    duration_s: float
    detail: str
    violations: list[str] = field(default_factory=list)
    inference_s: list[float] = field(default_factory=list)
    rejected: int = 0
    jerk_mean_rad_s3: float = 0.0
    wrong_direction: bool = False
    obeyed: bool | None = None  # in a swap test: did what was said and not the other; None if it did neither


@dataclass(frozen=True)
class Trial:
    """What one episode asks for. Plain data: it goes to another process."""

    seed: int
    family: str | None = None
    text: str | None = None  # a sentence; otherwise the world chooses a task and a phrasing
    phrasings: str = "trained"
    pairs: str = "trained"
    swap: int | None = None  # 0: the scene's task, where another contrasts with it; 1: that other one


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def command_violations(commands: Sequence[Command], contract: Contract) -> tuple[list[str], float]:
    """Check a recorded command stream against the contract: finite, position, velocity, acceleration and jerk.

    Differences are taken over the commands' own times, the way the limiter integrates them. Returns the violations,
    worst first, and the mean absolute jerk over all joints [rad/s^3].
    """
    if len(commands) < 4:
        return [], 0.0
    q = np.array([c.q_rad for c in commands])
    t = np.array([c.at_s for c in commands])
    if not np.isfinite(q).all():
        return ["a command is not finite"], math.nan
    dt = np.diff(t)[:, None]
    v = np.diff(q, axis=0) / dt
    a = np.diff(v, axis=0) / dt[1:]
    j = np.diff(a, axis=0) / dt[2:]
    limits = contract.limits
    found = []
    slack = 1e-6  # rounding of differences, relative
    outside = np.maximum(limits.q_lo_rad - q, q - limits.q_hi_rad).max()
    if outside > 1e-9:
        found.append(f"position {outside:.2e} rad outside the soft limits")
    for name, values, bound, rounding in (
        ("velocity", v, limits.v_max_rad_s, 1e-12 / dt.min()),
        ("acceleration", a, limits.a_max_rad_s2, 1e-12 / dt.min() ** 2),
        ("jerk", j, limits.j_max_rad_s3, 1e-12 / dt.min() ** 3),
    ):
        excess = (np.abs(values) - bound * (1 + slack) - rounding).max()
        if excess > 0:
            found.append(f"{name} {excess:.3g} above its limit")
    return found, float(np.abs(j).mean())


class Rollout:
    """One robot, one policy, one world; `run` plays one episode."""

    def __init__(self, contract: Contract, policy: PolicyRuntime, chunk_delay_s: float = CHUNK_DELAY_S) -> None:
        self._contract = contract
        self._policy = policy
        self._delay_s = chunk_delay_s
        self.world = World(contract)
        self.cameras = contract.cameras

    def run(
        self,
        seed: int | tuple[int, ...],
        family: str | None = None,
        text: str | None = None,
        on_frame: Callable[[dict[str, np.ndarray]], None] | None = None,
        suitable: Callable[[World, Task], bool] = choices.with_trained_pairs,
        heldout_phrasing: bool = False,
        swap: int | None = None,
    ) -> Episode:
        """`text` is a sentence; without it the world chooses one.

        suitable: which tasks may be drawn; swap: see `Trial`."""
        world, rng = self.world, np.random.default_rng([*np.atleast_1d(seed), 2])
        named = None if text is None else parse(text)
        world.reset(seed, family, named, suitable)
        rival: Task | None = None
        if swap is not None:
            others = choices.contrasting(world, world.task)
            rival = others[int(rng.integers(len(others)))]
            if swap:
                first = world.task
                world.set_task(rival)
                rival = first
        if text is not None and not swap:
            said = text
        elif heldout_phrasing or swap:
            said = sentence(world.task, rng, heldout_phrasing)
        else:
            said = world.instruction
        episode = Episode(seed, world.task.family, said, False, False, False, 0.0, "")
        try:
            self._policy.judge(said)
        except Refused as refusal:
            episode.detail = f"refused: {refusal}"
            return episode
        self._play(episode, np.random.default_rng([*np.atleast_1d(seed), 1]), on_frame)
        end = world.outcome()
        episode.success, episode.wrong_object, episode.detail = end.success, end.wrong_object, end.detail
        episode.wrong_direction = end.wrong_direction
        if rival is not None:
            astray = end.wrong_object or end.wrong_direction or verdict.fulfilled(world, rival)
            episode.obeyed = not astray if end.success or astray else None
        return episode

    def _play(
        self, episode: Episode, rng: np.random.Generator, on_frame: Callable[[dict[str, np.ndarray]], None] | None
    ) -> None:
        contract, world = self._contract, self.world
        supervisor = Supervisor(contract, Kinematics(contract), writer_id=WRITER_ID)
        arm = ArmController(contract)
        builder = ObservationBuilder(contract)
        period = contract.period_s
        steps = round(period / TIMESTEP_S)
        frame_period = 1.0 / contract.cameras[0].rate_hz
        stride = max(1, round(contract.cameras[0].rate_hz / contract.rates.policy_hz))
        pending: list[tuple[float, Chunk]] = []
        in_flight: list[Command | None] = [None] * COMMAND_DELAY_TICKS
        commands: list[Command] = []
        rearms: tuple[int, ...] = ()
        instructs: tuple[tuple[int, str, int], ...] = ()
        verdicts: tuple[tuple[int, bool, str], ...] = ()
        instruction_id, frames, sequence = 0, 0, 0
        fulfilled_at: float | None = None

        for tick in range(round(TIME_LIMIT_S / period)):
            elapsed = tick * period
            now = START_S + elapsed
            stamp_ns = round(now * 1e9)
            q, qd, width = world.joints()
            sample = JointSample(q, qd, width, now)
            builder.add_joints(sample, stamp_ns)
            if elapsed + 1e-9 >= frames * frame_period:
                if frames % stride == 0:
                    pictures = {camera.name: world.render(camera.name) for camera in contract.cameras}
                    for name, picture in pictures.items():
                        builder.add_image(name, picture, stamp_ns, stamp_ns, now)
                    if instruction_id:
                        sequence += 1
                        pending.append(
                            (now + self._delay_s, self._chunk(builder, episode, rng, instruction_id, sequence, now))
                        )
                    if on_frame is not None:
                        on_frame(pictures)
                frames += 1
            arrived = tuple(chunk for due, chunk in pending if due <= now)
            pending = [(due, chunk) for due, chunk in pending if due > now]
            decision = supervisor.update(
                now, Inputs(joints=sample, chunks=arrived, rearms=rearms, instructs=instructs, verdicts=verdicts)
            )
            # The arm controller must have seen the counter before the rearm, or it takes no command.
            rearms, verdicts = ((1,) if tick == REARM_TICK else ()), ()
            instructs = ((2, episode.text, 0),) if tick == INSTRUCT_TICK else ()
            if decision.publish_instruction is not None:
                instruction_id = decision.publish_instruction[0]
                verdicts = ((instruction_id, True, ""),)
            episode.rejected += sum(1 for _ in decision.events)
            if decision.command is not None:
                commands.append(decision.command)
            in_flight.append(decision.command)
            output = arm.update(now, in_flight.pop(0), sample, 0)
            if output is not None:
                world.command(output.q_rad, output.qd_rad_s)
                world.grip(output.gripper_width_m)
            world.step(steps)
            episode.duration_s = elapsed
            if decision.phase == "done":
                episode.done = True
                break
            if world.outcome().success:
                fulfilled_at = elapsed if fulfilled_at is None else fulfilled_at
                if elapsed - fulfilled_at > LINGER_S:
                    break
            else:
                fulfilled_at = None
        episode.violations, episode.jerk_mean_rad_s3 = command_violations(commands, contract)

    def _chunk(
        self,
        builder: ObservationBuilder,
        episode: Episode,
        rng: np.random.Generator,
        instruction_id: int,
        sequence: int,
        now: float,
    ) -> Chunk:
        out = self._policy.infer(builder.build(now), episode.text, rng)
        episode.inference_s.append(out.inference_s)
        action = self._contract.action
        return Chunk(
            observed_at_s=now,
            writer_id=WRITER_ID + 1,
            instruction_id=instruction_id,
            sequence=sequence,
            contract_hash=self._contract.hash,
            space=action.space,
            dt_s=action.dt_s,
            data=out.data,
            inference_s=out.inference_s,
            confidence=out.confidence,
            done_probability=out.done_probability,
        )


_ROLLOUT: Rollout | None = None  # one per worker process


def _start_worker(robot: str, policy: str | None, delay_s: float, runtime: str) -> None:
    global _ROLLOUT
    contract = contracts.load(robot)
    _ROLLOUT = Rollout(contract, _load(policy, contract, runtime), delay_s)


def _load(policy: str | None, contract: Contract, runtime: str) -> PolicyRuntime:
    if runtime == "torch":
        from vla_ros.policy.torch_runtime import load_run

        return load_run(Path(policy or "."), contract)
    return load_policy(paths.policy_folder(policy), contract, FLOAT_GRAPH if runtime == "fp32" else None)


def _run_one(trial: Trial) -> Episode:
    assert _ROLLOUT is not None
    pair_fits = choices.with_heldout_pair if trial.pairs == "heldout" else choices.with_trained_pairs

    def suitable(world: World, task: Task) -> bool:
        return pair_fits(world, task) and (trial.swap is None or bool(choices.contrasting(world, task)))

    return _ROLLOUT.run(
        trial.seed,
        trial.family,
        trial.text,
        suitable=suitable,
        heldout_phrasing=trial.phrasings == "heldout",
        swap=trial.swap,
    )


def trials(
    episodes: int,
    seed: int,
    *,
    family: str | None = None,
    text: str | None = None,
    phrasings: str = "trained",
    pairs: str = "trained",
    swap: bool = False,
) -> list[Trial]:
    """Seeds seed, seed + 1, ..., families in turn unless one is named; with `swap` two contrasting sentences in each
    scene. `text` is a sentence, or a template with slots as in `sim.tasks`. Raises ValueError for what does not go
    together."""
    names = [family] if family else list(FAMILIES)
    if text is not None:
        task = parse(concrete(text, np.random.default_rng(seed)) if "{" in text else text)
        names = [task.family] if task else names
    if pairs == "heldout":
        names = [name for name in names if FAMILIES[name].shapes]
        if not names:
            raise ValueError(f"pairs is heldout, but family {family!r} names no object")
    scenes = [k // 2 if swap else k for k in range(episodes)]
    planned = []
    for k, n in enumerate(scenes):
        said = text
        if text is not None and "{" in text:
            said = concrete(text, np.random.default_rng([seed + n, 4]), pairs == "heldout")
        planned.append(Trial(seed + n, names[n % len(names)], said, phrasings, pairs, k % 2 if swap else None))
    return planned


def evaluate(
    planned: Sequence[Trial],
    *,
    robot: str = "panda",
    policy: str | None = None,
    runtime: str = "int8",
    delay_steps: int = 0,
    workers: int = 1,
    progress: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play trials, several at a time. Every chunk comes `delay_steps` rows later than the live graph's do."""
    results = []
    delay_s = CHUNK_DELAY_S + delay_steps * contracts.load(robot).action.dt_s
    context = multiprocessing.get_context("spawn")  # neither a GL context nor an inference session survives a fork
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(robot, policy, delay_s, runtime)
    ) as pool:
        for episode in pool.map(_run_one, planned):
            results.append(episode)
            if progress is not None:
                progress(episode)
    return results


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


def report(episodes: Sequence[Episode]) -> dict[str, Any]:
    """The JSON object of `vla eval`. Shares of the episodes; `false_done`: declared done and not so; `jerk_mean`: mean
    absolute jerk of the commands over joints and time [rad/s^3]."""
    latencies = np.array([s for e in episodes for s in e.inference_s]) * 1e3
    families = {}
    for name in dict.fromkeys(e.family for e in episodes):
        own = [e for e in episodes if e.family == name]
        wins = sum(e.success for e in own)
        families[name] = {
            "n": len(own),
            "success": wins / len(own),
            "wilson": [round(x, 4) for x in wilson(wins, len(own))],
        }
    n = len(episodes)
    wins = sum(e.success for e in episodes)
    return {
        "episodes": n,
        "success": wins / n if n else 0.0,
        "wilson": [round(x, 4) for x in wilson(wins, n)],
        "wrong_object": sum(e.wrong_object for e in episodes) / n if n else 0.0,
        "wrong_direction": sum(e.wrong_direction for e in episodes) / n if n else 0.0,
        **_swap(episodes),
        "command_violations": sum(bool(e.violations) for e in episodes),
        "families": families,
        "policy_latency_ms": {"p50": _percentile(latencies, 50), "p99": _percentile(latencies, 99)},
        "done_declared": sum(e.done for e in episodes) / n if n else 0.0,
        "false_done": sum(e.done and not e.success for e in episodes) / n if n else 0.0,
        "jerk_mean": float(np.mean([e.jerk_mean_rad_s3 for e in episodes])) if n else 0.0,
        "duration_s": float(np.mean([e.duration_s for e in episodes])) if n else 0.0,
        "failures": [
            {k: v for k, v in asdict(e).items() if k != "inference_s"}
            for e in episodes
            if not e.success or e.wrong_object or e.violations
        ],
    }


def _swap(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """Of the episodes that went one way or the other, the share that went where told; and how many did."""
    decided = [e.obeyed for e in episodes if e.obeyed is not None]
    obeyed = sum(decided) / len(decided) if decided else None
    return {"swap_obeyed": obeyed, "swap_decided": len(decided) / len(episodes) if decided else None}


def _percentile(values: np.ndarray, q: float) -> float:
    return round(float(np.percentile(values, q)), 2) if values.size else 0.0


__all__ = [
    "RUNTIMES",
    "SETS",
    "Episode",
    "Rollout",
    "Trial",
    "command_violations",
    "evaluate",
    "report",
    "trials",
    "wilson",
]
