"""What the supervisor's limits cost: task success with them and without, on the same scenes.

    python benchmarks/safety/limits_cost.py [--episodes 200] [--seed 7000] [--workers 2] [--json] [--state FILE.jsonl]
                                            [--report FILE.md]

"On" is the evaluation of `vla eval`: chunk executor, supervisor, arm controller. Nothing in the product can switch them
off, so "off" is a second player that exists only here: each row of a chunk goes to the servo as the expert's rows do
while demonstrations are made (the setpoint moves evenly to the row's pose; only the joint speed is cut). No fade
between chunks, no acceleration, jerk or braking limit, no speed cap, no look-ahead, no workspace box. Scenes,
sentences, the policy's noise, the delay from picture to chunk and the time limit are the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pinocchio as pin
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from resume import State

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.core.chunks import CLOSE_BELOW, OPEN_ABOVE
from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.task import DONE_ABOVE, DONE_FOR_S
from vla_ros.core.types import Chunk, JointSample, Severity
from vla_ros.data.disk import write_whole
from vla_ros.policy.runtimes import open_policy
from vla_ros.sim.scene import TIMESTEP_S
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.rollout import INSTRUCT_TICK, LINGER_S, START_S, TIME_LIMIT_S, Proposer, Rollout, Tape
from vla_ros.training.scores import Episode, paired, wilson

BAR_POINTS = 2.0
MOVING = SimpleNamespace(severity=Severity.RUN, phase="moving")  # what the proposer asks of a decision


@dataclass
class Rows:
    """The newest chunk, played row by row without any limit but the joint speed."""

    contract: Contract
    kinematics: Kinematics
    q_command: np.ndarray
    due_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (rows,) when the arm should be there
    goals: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (rows, n) rad
    opening: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (rows,)
    width_m: float = 0.0

    def take(self, chunk: Chunk, q_observed: np.ndarray) -> None:
        rotation, position = self.kinematics.tool_pose(q_observed)
        goals, seed = [], self.q_command
        for row in chunk.data:
            seed, _ = self.kinematics.inverse(pin.exp3(row[3:6]) @ rotation, position + row[:3], seed)
            goals.append(seed)
        rows = 1 + np.arange(len(chunk.data))
        self.goals, self.opening = np.array(goals), chunk.data[:, -1]
        self.due_s = chunk.observed_at_s + rows * chunk.dt_s - self.contract.arm.actuation_delay_s

    def step(self, now_s: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Setpoint (q, v) of one control period, and the wanted opening."""
        left = np.flatnonzero(self.due_s > now_s)
        velocity = np.zeros_like(self.q_command)
        if left.size:
            k, limit = left[0], self.contract.limits.v_max_rad_s
            left_s = max(self.due_s[k] - now_s, self.contract.period_s)
            velocity = np.clip((self.goals[k] - self.q_command) / left_s, -limit, limit)
            gripper = self.contract.gripper
            if self.opening[k] > OPEN_ABOVE:
                self.width_m = gripper.open_m
            elif self.opening[k] < CLOSE_BELOW:
                self.width_m = gripper.closed_m
        self.q_command = self.q_command + velocity * self.contract.period_s
        return self.q_command, velocity, self.width_m


class Unlimited(Rollout):
    """`Rollout` with nothing between policy and servo."""

    def __init__(self, like: Rollout) -> None:
        """Shares everything: a process can draw with one renderer only."""
        self.__dict__.update(like.__dict__)

    def _play(
        self,
        episode: Episode,
        rng: np.random.Generator,
        on_frame: Callable[[dict[str, np.ndarray]], None] | None,
        tape: Tape | None,
    ) -> None:
        contract, world = self._contract, self.world
        builder = ObservationBuilder(contract)
        q, _, width = world.joints()
        rows = Rows(contract, Kinematics(contract), q, width_m=width)
        proposer = Proposer(contract, self._policy, self._execution, episode.text)
        delay_s, spacing_s = self._execution.delay_s(contract), self._execution.spacing_s(contract)
        period = contract.period_s
        pending: list[tuple[float, Chunk, np.ndarray]] = []
        looks = 0
        fulfilled_s: float | None = None
        done_s: float | None = None
        for tick in range(round(TIME_LIMIT_S / period)):
            elapsed_s = tick * period
            now = START_S + elapsed_s
            stamp_ns = round(now * 1e9)
            q, qd, width = world.joints()
            builder.add_joints(JointSample(q, qd, width, now), stamp_ns)
            if elapsed_s + 1e-9 >= looks * spacing_s:
                looks += 1
                for camera in contract.cameras:
                    builder.add_image(camera.name, world.render(camera.name), stamp_ns, stamp_ns, now)
                if tick > INSTRUCT_TICK:  # as early as the other player
                    pending.append((now + delay_s, proposer.propose(builder.build(now), rng, 1, now), q))
            while pending and pending[0][0] <= now:
                _, chunk, q_observed = pending.pop(0)
                rows.take(chunk, q_observed)
                proposer.watch(MOVING)
                sure = chunk.done_probability > DONE_ABOVE
                done_s = (now if done_s is None else done_s) if sure else None
            q_command, velocity, width_m = rows.step(now)
            world.command(q_command, velocity)
            world.grip(width_m)
            world.step(round(period / TIMESTEP_S))
            episode.duration_s = elapsed_s
            if done_s is not None and now - done_s >= DONE_FOR_S:
                episode.done = True
                break
            if world.outcome().success:
                fulfilled_s = elapsed_s if fulfilled_s is None else fulfilled_s
                if elapsed_s - fulfilled_s > LINGER_S:
                    break
            else:
                fulfilled_s = None


_PLAYERS: dict[str, Rollout] = {}  # of this worker process


def _start(robot: str, policy: str | None) -> None:
    contract = contracts.load(robot)
    runtime = open_policy(paths.policy_folder(policy), contract)  # int8, as `vla eval`
    _PLAYERS["on"] = Rollout(contract, runtime)
    _PLAYERS["off"] = Unlimited(_PLAYERS["on"])


def _pair(job: tuple[int, str]) -> dict[str, Any]:
    """One scene with limits and without; what of each episode counts."""
    kept = ("success", "wrong_object", "done", "duration_s", "detail")
    episodes = {name: player.run(*job) for name, player in _PLAYERS.items()}
    return {"seed": job[0]} | {name: {key: getattr(e, key) for key in kept} for name, e in episodes.items()}


def compare(pairs: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The JSON object. `points`: success with limits minus success without, in percentage points."""
    n = len(pairs)
    rows = {}
    for name in ("on", "off"):
        episodes = [pair[name] for pair in pairs]
        wins = sum(e["success"] for e in episodes)
        rows[name] = {
            "success": wins / n,
            "wilson": [round(x, 4) for x in wilson(wins, n)],
            "wrong_object": sum(e["wrong_object"] for e in episodes) / n,
            "done_declared": sum(e["done"] for e in episodes) / n,
            "duration_s": round(float(np.mean([e["duration_s"] for e in episodes if e["success"]] or [np.nan])), 2),
        }
    difference = np.array([float(pair["on"]["success"]) - float(pair["off"]["success"]) for pair in pairs])
    points = 100.0 * float(difference.mean())
    error = 100.0 * float(difference.std(ddof=1)) / n**0.5 if n > 1 else float("nan")
    wins = [[pair[name]["success"] for pair in pairs] for name in ("on", "off")]
    return {
        "episodes": n,
        "seeds": [seed, max(pair["seed"] for pair in pairs)],
        **rows,
        "points": round(points, 2),
        "points_95": [round(points - 1.96 * error, 2), round(points + 1.96 * error, 2)] if n > 1 else None,
        "mcnemar_p": round(paired(*wins)[2], 4),
        "only_with_limits": [pair["seed"] for pair, d in zip(pairs, difference, strict=True) if d > 0.0],
        "only_without_limits": [pair["seed"] for pair, d in zip(pairs, difference, strict=True) if d < 0.0],
        "bar_points": BAR_POINTS,
        "ok": points >= -BAR_POINTS,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"Success with the supervisor's limits and without, {result['episodes']} scenes each, seeds "
        f"{result['seeds'][0]} to {result['seeds'][1]}. Made by `python benchmarks/safety/limits_cost.py`.",
        "",
        "| limits | success | 95 % (Wilson) | wrong object | done declared | seconds to success |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("on", "off"):
        row = result[name]
        low, high = row["wilson"]
        lines.append(
            f"| {name} | {row['success']:.1%} | {low:.1%} to {high:.1%} | {row['wrong_object']:.1%} "
            f"| {row['done_declared']:.1%} | {row['duration_s']} |"
        )
    interval = (
        "one scene has none" if result["points_95"] is None else "{:+.1f} to {:+.1f}".format(*result["points_95"])
    )
    lines += [
        "",
        f"Difference: {result['points']:+.1f} points (95 % of the paired difference: {interval}; "
        f"McNemar p = {result['mcnemar_p']:.2f}); the bar is {-BAR_POINTS:+.0f}. "
        f"Solved with limits only: {len(result['only_with_limits'])}; "
        f"without only: {len(result['only_without_limits'])}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--policy", help="folder; without it the one shipped for the robot")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", type=Path, help="keeps every finished pair; the same command goes on from it")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if not options.episodes >= 1 or not options.workers >= 1 or not options.seed >= 0:
        parser.error("--episodes and --workers: at least 1; --seed: at least 0")
    names = list(FAMILIES)
    state = State(options.state, {"episodes": options.episodes, "seed": options.seed, "policy": options.policy})
    known = {pair["seed"] for pair in state.done}
    seeds = [s for s in range(options.seed, options.seed + options.episodes) if s not in known]
    jobs = [(s, names[(s - options.seed) % len(names)]) for s in seeds]
    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")  # neither a GL context nor an inference session survives a fork
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(
            options.workers, mp_context=context, initializer=_start, initargs=(options.robot, options.policy)
        ) as pool,
    ):
        bar = progress.add_task("", total=options.episodes, completed=len(known))
        for pair in pool.map(_pair, jobs):
            state.keep(pair)
            progress.advance(bar)
    result = compare(sorted(state.done, key=lambda pair: pair["seed"]), options.seed)
    print(json.dumps(result) if options.json else table(result))
    if options.report is not None:
        write_whole(options.report, table(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
