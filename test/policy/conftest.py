"""A tiny model, a tiny synthetic data set in the demonstrations' format, and a policy folder exported from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation
from vla_ros.sim import tasks

ROWS, COLS = 16, 7
TINY = {
    "text_tokens": 18,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "mlp_ratio": 2,
    "action_queries": 2,
    "stem": [8, 8, 8, 8],
    "keypoints": 4,
    "keypoint_tokens": 2,
    "patch_grid": 2,
    "steps": 2,
}


@pytest.fixture(scope="session")
def contract():
    return contracts.load("panda")


def write_shard(folder: Path, name: str, contract, frames: int, rng: np.random.Generator) -> dict:
    """Coloured squares on grey; the chunk goes towards the named one."""
    px = contract.cameras[0].policy_px
    colours = list(tasks.COLOURS)
    images = rng.integers(110, 130, (frames, len(contract.cameras), px, px, 3), dtype=np.uint8)
    state = np.zeros((frames, contract.n_joints + 1), dtype=np.float32)
    state[:, :-1] = contract.poses.ready_rad + rng.normal(0, 0.1, (frames, contract.n_joints))
    state[:, -1] = 0.08
    columns: dict[str, list] = {k: [] for k in ("frame", "task", "chunk", "done", "aux", "point")}
    for frame in range(frames):
        for colour in rng.permutation(len(colours))[:2]:
            x, y = rng.integers(10, px - 20, 2)
            images[frame, :, y : y + 10, x : x + 10] = np.array(tasks.COLOURS[colours[colour]]) * 255
            towards = np.array([(y - px / 2) / 300, (x - px / 2) / 300, -0.1])
            chunk = np.zeros((ROWS, COLS))
            chunk[:, :3] = towards * np.linspace(1 / ROWS, 1, ROWS)[:, None]
            chunk[:, 6] = 1.0
            columns["frame"].append(frame)
            columns["task"].append((0, colour, 0, -1))
            columns["chunk"].append(chunk)
            columns["done"].append(np.linalg.norm(towards) < 0.11)
            columns["aux"].append([*towards, 0, 0, 0, 0])
            seen = [(x + 5) / px, (y + 5) / px, 1.0]
            columns["point"].append([[seen, [0.0, 0.0, 0.0]]] * len(contract.cameras))
    np.save(folder / f"{name}.images.npy", images)
    np.save(folder / f"{name}.state.npy", state)
    kinds = {
        "frame": np.int32,
        "task": np.int8,
        "chunk": np.float32,
        "done": np.uint8,
        "aux": np.float32,
        "point": np.float32,
    }
    for key, kind in kinds.items():
        np.save(folder / f"{name}.label_{key}.npy", np.asarray(columns[key], dtype=kind))
    return {"name": name, "frames": frames, "labels": len(columns["frame"])}


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory, contract) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    rng = np.random.default_rng(5)
    shards = [write_shard(folder, name, contract, 40, rng) for name in ("0000", "0001")]
    meta = {
        "format": 1,
        "seed": 5,
        "contract_hash": contract.hash,
        "git_revision": "test",
        "rows": ROWS,
        "cols": COLS,
        "families": list(tasks.FAMILIES),
        "colours": list(tasks.COLOURS),
        "shapes": list(tasks.SHAPES),
        "shards": shards,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="session")
def training_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "steps": 8,
                "batch": 8,
                "draws": 2,
                "warmup_steps": 2,
                "validation_every": 100,
                "validation_samples": 8,
                "validation_fraction": 0.2,
                "save_every": 100,
                "snapshot_every": 100,
                "names": ["red", "green", "blue", "yellow"],
                "model": TINY | {"expect": True},
            }
        )
    )
    return path


@pytest.fixture(scope="session")
def make_trainer(demonstrations, training_file, contract):
    torch = pytest.importorskip("torch")
    from vla_ros.policy.features import StateFeatures
    from vla_ros.training.actions import ActionLabels
    from vla_ros.training.config import load_config
    from vla_ros.training.dataset import Dataset
    from vla_ros.training.trainer import Trainer

    def make(
        out: Path, words: set[str] | None = None, start: Path | None = None, senses: Path | None = None, **changes
    ) -> Trainer:
        torch.manual_seed(0)
        config = load_config(training_file).model_copy(update=changes)
        actions = ActionLabels(contract, config.model.rows, config.model.action_space)
        features = StateFeatures(contract).of_states
        data = Dataset([demonstrations], contract.hash, features, config.validation_fraction, actions)
        return Trainer(config, data, words or tasks.all_words(), out, contract.hash, start, senses=senses)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, make_trainer) -> Path:
    """A run folder after a few steps."""
    from rich.console import Console

    from vla_ros.training.train import run

    out = tmp_path_factory.mktemp("run")
    run(make_trainer(out), None, Console(quiet=True))
    return out


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory, trained, demonstrations, contract) -> Path:
    pytest.importorskip("onnx")
    from vla_ros.policy.export import export

    out = tmp_path_factory.mktemp("policy") / "tiny"
    export(trained, out, [demonstrations], contract, "tiny")
    return out


@pytest.fixture
def observation(contract) -> Observation:
    rng = np.random.default_rng(1)
    images = {c.name: rng.integers(0, 255, (c.policy_px, c.policy_px, 3), dtype=np.uint8) for c in contract.cameras}
    return Observation(1, 1, contract.hash, images, contract.poses.ready_rad, np.zeros(contract.n_joints), 0.08)
