"""Recorded demonstrations beside the simulator's: what nobody measured is not taught, what was said is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402

from vla_ros.policy.features import StateFeatures  # noqa: E402
from vla_ros.policy.language import Language, Refused  # noqa: E402
from vla_ros.policy.tokenizer import Tokenizer, split  # noqa: E402
from vla_ros.policy.torch_runtime import lexicon, load_run  # noqa: E402
from vla_ros.sim import tasks  # noqa: E402
from vla_ros.training import lerobot  # noqa: E402
from vla_ros.training.dataset import Dataset, DatasetInvalid  # noqa: E402
from vla_ros.training.train import run  # noqa: E402
from vla_ros.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.unit
NEW = "wave at the camera"


@dataclass(frozen=True)
class Recorded:
    """An episode with the fields of the reader's."""

    text: str
    images: np.ndarray
    state: np.ndarray
    chunk: np.ndarray
    done: np.ndarray
    success: bool


def record(contract, text, frames=12, success=True):
    rng = np.random.default_rng(len(text))
    px = contract.cameras[0].policy_px
    state = np.zeros((frames, contract.n_joints + 1), dtype=np.float32)
    state[:, :-1] = contract.poses.ready_rad
    return Recorded(
        text,
        rng.integers(0, 255, (frames, len(contract.cameras), px, px, 3), dtype=np.uint8),
        state,
        rng.normal(0, 0.02, (frames, 16, 7)).astype(np.float32),
        (np.arange(frames) == frames - 1).astype(np.uint8),
        success,
    )


@pytest.fixture
def mixed(contract, demonstrations, tmp_path) -> Dataset:
    """Recorded episodes as new data, the simulator's as old."""
    features = StateFeatures(contract).of_states
    folder = tmp_path / "recorded"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{}")
    episodes = [record(contract, NEW), record(contract, "pick up the red cube"), record(contract, "x", success=False)]

    def reader(path):
        shard, skipped = lerobot.as_shard(str(path), episodes, features, None)
        return shard, lerobot.describe(shard, contract), skipped

    return Dataset([folder], contract.hash, features, 0.2, None, [demonstrations], 0.5, reader)


def test_recorded_sentences_are_taught_as_they_were_said(mixed):
    tokenizer = Tokenizer.of(tasks.all_words() | set(split(NEW)), 18)
    batch = mixed.training_batch(0, 64, 1, tokenizer, None)
    said = [list(tokenizer.encode(text)) for text in (NEW, "pick up the red cube")]
    recorded = np.isnan(batch.aux[:, 0])
    assert 0.1 < recorded.mean() < 0.9
    assert all(list(ids) in said for ids in batch.ids[recorded])
    assert mixed.texts == ["pick up the red cube", NEW]


def test_episodes_that_failed_are_left_out_and_named(mixed, contract):
    assert len(mixed.skipped) == 1 and "episode 2 did not succeed" in mixed.skipped[0]
    with pytest.raises(DatasetInvalid, match="no episode that succeeded"):
        lerobot.as_shard("all", [record(contract, NEW, success=False)], StateFeatures(contract).of_states, None)


def test_a_folder_of_recordings_without_its_reader_is_refused_with_the_remedy(contract, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "vla_ros.data.lerobot_reader", None)
    with pytest.raises(DatasetInvalid, match="is a LeRobot data set; to read it, install"):
        lerobot.episodes(tmp_path, contract)


def test_a_policy_that_learned_from_recordings_knows_their_sentences(mixed, make_trainer, contract, tmp_path):
    config = make_trainer(tmp_path / "plain").config
    trainer = Trainer(config, mixed, tasks.all_words() | set(split(NEW)), tmp_path / "run", contract.hash)
    before = trainer.model.where_object.weight.detach().clone()
    run(trainer, None, Console(quiet=True), stop_at=2)
    assert torch.isfinite(trainer.model.where_object.weight).all()
    assert not torch.equal(before, trainer.model.where_object.weight), "the simulator's labels teach it still"
    runtime = load_run(tmp_path / "run", contract)
    runtime.judge(NEW)
    with pytest.raises(Refused):
        Language(lexicon(), 18).judge(NEW)
