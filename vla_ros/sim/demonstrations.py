"""Makes demonstrations: scenes, disturbed motions, and the expert's chunk for every sentence that fits each picture.

Layout of the data set (all arrays .npy, memory-mappable): see `Shard`. Resumable: a finished shard is never made again,
an unfinished one leaves nothing behind (temporary name, then rename).

    python -m vla_ros.sim.demonstrations --out DIR --episodes 1500 --seed 0 --workers 2 [--ray ADDRESS]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_ros.core import contract as contracts
from vla_ros.core.contract import Camera
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import prepare_image
from vla_ros.data import parallel
from vla_ros.sim import choices, expert
from vla_ros.sim.tasks import COLOURS, FAMILIES, SHAPES, TAUGHT_PAIRS, Task
from vla_ros.sim.world import World

STREAM = 0xDE305  # first number of every demonstration seed: evaluation seeds are plain integers and never meet it
EPISODES_PER_SHARD = 25
RECORD_EVERY = 2  # control rows: 10 Hz, neighbouring pictures teach little
OTHER_TASKS = 3  # further sentences labelled on each picture
STEPS_PER_TASK = 200
ROW_STEPS = 25  # physics steps of 2 ms in one row of 50 ms
WORKSPACE_M = ((0.30, -0.36, 0.10), (0.72, 0.36, 0.42))  # where a wild start may put the tool


@dataclass
class Shard:
    """Frames and labels of some episodes; n frames, m labels."""

    images: list[np.ndarray] = field(default_factory=list)  # (2, px, px, 3) uint8, cameras in contract order
    state: list[np.ndarray] = field(default_factory=list)  # (8,) joint positions [rad] and gripper width [m]
    label_frame: list[int] = field(default_factory=list)
    label_task: list[tuple[int, int, int, int]] = field(default_factory=list)  # Task.codes()
    label_chunk: list[np.ndarray] = field(default_factory=list)  # (rows, 7), as in msg/ActionChunk
    label_done: list[bool] = field(default_factory=list)
    label_aux: list[np.ndarray] = field(default_factory=list)  # (7,) as in expert.Labels
    # (cameras, 2, 3) what to move and where to, in each picture: u, v, visible
    label_point: list[np.ndarray] = field(default_factory=list)

    def add(self, images: np.ndarray, state: np.ndarray, labels: expert.Labels, points: np.ndarray) -> None:
        """One picture with everything the expert says about it."""
        for k, task in enumerate(labels.tasks):
            self.label_frame.append(len(self.images))
            self.label_task.append(task.codes())
            self.label_chunk.append(labels.chunk[k])
            self.label_done.append(bool(labels.done[k]))
            self.label_aux.append(labels.aux[k])
            self.label_point.append(points[k])
        self.images.append(images)
        self.state.append(state)

    def record(
        self, world: World, cameras: Sequence[Camera], pictures: dict[str, np.ndarray], labels: expert.Labels
    ) -> None:
        """Add the world's present state, seen in `pictures` (raw, by camera name)."""
        q, _, width = world.joints()
        _, tool = world.tool_pose()
        points = np.zeros((len(labels.tasks), len(cameras), 2, 3))
        for k, aux in enumerate(labels.aux):
            for c, camera in enumerate(cameras):
                points[k, c, 0] = world.in_picture(camera.name, aux[:3] + tool)
                if aux[6]:
                    points[k, c, 1] = world.in_picture(camera.name, aux[3:6] + tool)
        images = np.stack([prepare_image(pictures[camera.name], camera) for camera in cameras])
        self.add(images, np.concatenate([q, [width]]), labels, points)

    def save(self, folder: Path, name: str) -> None:
        """Write all arrays, then the small file that makes the shard count."""
        types = {
            "images": np.uint8,
            "state": np.float32,
            "label_frame": np.int32,
            "label_task": np.int8,
            "label_chunk": np.float32,
            "label_done": np.uint8,
            "label_aux": np.float32,
            "label_point": np.float32,
        }
        for key, kind in types.items():
            part = folder / f".{name}.{key}.npy"
            np.save(part, np.asarray(getattr(self, key), dtype=kind))
            os.replace(part, folder / f"{name}.{key}.npy")
        entry = {"name": name, "frames": len(self.images), "labels": len(self.label_frame)}
        part = folder / f".{name}.json"
        part.write_text(json.dumps(entry))
        os.replace(part, folder / f"{name}.json")


def other_tasks(world: World, rng: np.random.Generator) -> list[Task]:
    """Further sentences that make sense in this picture: each is another lesson at the price of a few numbers.

    A family is drawn first, then one of its tasks, so that families with few tasks are taught as much."""
    found: list[Task] = []
    for family in rng.choice(list(FAMILIES), OTHER_TASKS):
        others = [
            t
            for t in choices.possible_tasks(world, str(family))
            if t != world.task and t not in found and choices.teachable(world, t)
        ]
        if others:
            found.append(others[int(rng.integers(len(others)))])
    return found


def lessons(world: World, rng: np.random.Generator) -> list[Task]:
    """What a picture of the present state is labelled for: the world's task, where it may be taught, and others."""
    own = [world.task] if choices.teachable(world, world.task) else []
    return own + other_tasks(world, rng)


class Demonstrator:
    """Plays episodes in one world and records them."""

    def __init__(self, robot: str, render: bool = True) -> None:
        self.contract = contracts.load(robot)
        self.kinematics = Kinematics(self.contract)
        self.world = World(self.contract, render=render, pairs=TAUGHT_PAIRS)
        self.cameras = self.contract.cameras

    def episode(self, seed: int, number: int, shard: Shard) -> tuple[bool, bool]:
        """Record one episode of one or two tasks. Returns whether the last task succeeded, undisturbed or not."""
        rng = np.random.default_rng((STREAM, seed, number, 1))
        world = self.world
        families = list(FAMILIES)
        world.reset((STREAM, seed, number), families[number % len(families)], suitable=choices.teachable)
        disturbed = rng.random() < 0.7
        if rng.random() < 0.6:
            self._wild_start(rng)
        success = self.play(rng, shard, disturbed)
        if rng.random() < 0.35:  # the next sentence finds the hand where the last one left it, perhaps full
            family = families[int(rng.integers(len(families)))]
            options = [t for t in choices.open_tasks(world, family) if choices.teachable(world, t)]
            if options:
                world.set_task(options[int(rng.integers(len(options)))])
                world.mark()
                success = self.play(rng, shard, disturbed)
        return success, disturbed

    def _wild_start(self, rng: np.random.Generator) -> None:
        lower, upper = (np.array(edge) for edge in WORKSPACE_M)
        ready = np.asarray(self.contract.poses.ready_rad, dtype=float)
        for _ in range(20):
            tilt = rng.normal(0, 0.05, 2)
            axis = np.array([[1, 0, tilt[0]], [0, 1, tilt[1]], [-tilt[0], -tilt[1], 1]])
            u, _, vt = np.linalg.svd(axis)
            rotation = u @ vt @ expert.down(rng.uniform(-0.8, 0.8, 1))[0]
            q = ready + rng.normal(0, 0.08, ready.shape)
            for _ in range(4):
                q, reached = self.kinematics.inverse(rotation, rng_position := rng.uniform(lower, upper), q)
                if reached:
                    break
            if reached and np.linalg.norm(self.kinematics.tool_pose(q)[1] - rng_position) < 1e-3:
                width = 0.08 if rng.random() < 0.7 else rng.uniform(0.0, 0.08)
                self.world.teleport(q, width)
                self.world.settle()
                return

    def play(self, rng: np.random.Generator, shard: Shard | None, disturbed: bool) -> bool:
        """Play the world's task to its end and say whether it succeeded. Without a shard nothing is drawn or kept."""
        world, dt = self.world, expert.DT_S
        q_command, _, _ = world.joints()
        burst_left, burst, flip = 0, np.zeros(6), None
        linger = int(rng.integers(4, 14))
        done_for = 0
        for row in range(STEPS_PER_TASK):
            if shard is not None and row % RECORD_EVERY == 0:
                pictures = {camera.name: world.render(camera.name) for camera in self.cameras}
                shard.record(world, self.cameras, pictures, expert.label(world, lessons(world, rng)))
            labels = expert.label(world, [world.task], rows=1)
            done_for = done_for + 1 if labels.done[0] else 0
            if done_for > linger:
                break
            if disturbed and burst_left == 0 and rng.random() < 0.05:
                burst_left = int(rng.integers(3, 9))
                burst = rng.normal(0, [0.12, 0.12, 0.10, 0.15, 0.15, 0.6])
                flip = float(rng.random() < 0.5) if rng.random() < 0.2 else None
            motion = labels.chunk[0, 0].copy()
            if disturbed:
                motion[:6] += rng.normal(0, [0.0025, 0.0025, 0.002, 0.004, 0.004, 0.01])
            if burst_left > 0:
                burst_left -= 1
                motion[:6] += burst * dt
                motion[6] = motion[6] if flip is None else flip
            q_command = self._execute(motion, q_command)
        return world.outcome().success

    def _execute(self, motion: np.ndarray, q_command: np.ndarray) -> np.ndarray:
        """Drive one row: the joint setpoint moves evenly to the row's target pose, within the velocity limits."""
        world, dt = self.world, expert.DT_S
        rotation, position = world.tool_pose()
        target = position + motion[:3]
        target[2] = max(target[2], self.contract.workspace.lower_m[2])
        q_goal, _ = self.kinematics.inverse(_exp(motion[3:6]) @ rotation, target, q_command)
        velocity = np.clip(
            (q_goal - q_command) / dt, -self.contract.limits.v_max_rad_s, self.contract.limits.v_max_rad_s
        )
        world.grip(self.contract.gripper.open_m if motion[6] > 0.5 else 0.0)
        for _ in range(5):
            q_command = q_command + velocity * dt / 5
            world.command(q_command, velocity)
            world.step(ROW_STEPS // 5)
        return q_command


def _exp(rotation_vector: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of a rotation vector (Rodrigues)."""
    angle = float(np.linalg.norm(rotation_vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = rotation_vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


Results = list[tuple[bool, bool]]  # of each episode: success, disturbed
_DEMONSTRATOR: Demonstrator | None = None  # one world per worker process


def make_shard(folder: Path, seed: int, index: int, robot: str) -> Results:
    """Play the episodes of one shard and write it. Runs in a worker process."""
    global _DEMONSTRATOR
    if _DEMONSTRATOR is None:
        _DEMONSTRATOR = Demonstrator(robot)
    shard = Shard()
    first = index * EPISODES_PER_SHARD
    results = [_DEMONSTRATOR.episode(seed, first + k, shard) for k in range(EPISODES_PER_SHARD)]
    shard.save(folder, f"{index:04d}")
    return results


def _revision() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return found.stdout.strip() or "unknown"


def write_meta(folder: Path, seed: int, contract_hash: str) -> None:
    """List every finished shard in meta.json."""
    shards = [json.loads(p.read_text()) for p in sorted(folder.glob("[0-9]*.json"))]
    meta = {
        "format": 1,
        "seed": seed,
        "contract_hash": contract_hash,
        "git_revision": _revision(),
        "rows": expert.ROWS,
        "cols": 7,
        "families": list(FAMILIES),
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "shards": shards,
    }
    part = folder / ".meta.json"
    part.write_text(json.dumps(meta, indent=1))
    os.replace(part, folder / "meta.json")


@dataclass(frozen=True)
class Order:
    """One shard to make, `make(folder, seed, index, *arguments)`. Plain data: it goes to another process or machine."""

    make: Callable[..., Results]
    folder: Path
    seed: int
    index: int
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.folder}: shard {self.index:04d}"


def make_ordered(order: Order) -> Results:
    """In whatever process."""
    return order.make(order.folder, order.seed, order.index, *order.arguments)


def fill(
    folder: Path,
    episodes: int,
    seed: int,
    contract_hash: str,
    workers: int,
    make: Callable[..., Results],
    *arguments: Any,
    ray: str = "",
) -> Results:
    """Make the shards that are missing, in worker processes or as Ray tasks (then `folder` must be on a disk that all
    machines see). A worker that dies costs its shard another attempt; what is finished stays.

    Returns what every new episode came to. Raises parallel.Failed where a shard cannot be made."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-episodes // EPISODES_PER_SHARD)
    todo = [i for i in range(count) if not (folder / f"{i:04d}.json").exists()]
    orders = [Order(make, folder, seed, i, arguments) for i in todo]
    label = f"{folder.name}, shards of {EPISODES_PER_SHARD}"
    made = parallel.stream(make_ordered, orders, workers, ray, label=label, done=count - len(todo))
    outcomes: Results = []
    for _, results in parallel.values(made):
        outcomes += results
        write_meta(folder, seed, contract_hash)
    write_meta(folder, seed, contract_hash)
    return outcomes


def totals(folder: Path) -> dict[str, Any]:
    """Frames and labels of all finished shards."""
    shards = json.loads((folder / "meta.json").read_text())["shards"]
    return {"frames": sum(s["frames"] for s in shards), "labels": sum(s["labels"] for s in shards)}


def options(description: str, episodes: int) -> argparse.ArgumentParser:
    """The options of every script that fills a data set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--episodes", type=int, default=episodes, help=f"rounded up to a multiple of {EPISODES_PER_SHARD}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ray", default="", help="address of a Ray cluster, or local; without it plain processes")
    parser.add_argument("--robot", default="panda")
    return parser


def main() -> None:
    """Command line."""
    arguments = options("Make demonstrations of the scripted expert.", 1500).parse_args()
    folder: Path = arguments.out
    contract = contracts.load(arguments.robot)
    outcomes = fill(
        folder,
        arguments.episodes,
        arguments.seed,
        contract.hash,
        arguments.workers,
        make_shard,
        arguments.robot,
        ray=arguments.ray,
    )
    clean = [ok for ok, disturbed in outcomes if not disturbed]
    print(
        json.dumps(
            totals(folder)
            | {
                "success": float(np.mean([ok for ok, _ in outcomes])) if outcomes else None,
                "success_undisturbed": float(np.mean(clean)) if clean else None,
            }
        )
    )


if __name__ == "__main__":
    from vla_ros.sim import demonstrations  # workers must find what they are to do by the module's name

    demonstrations.main()
