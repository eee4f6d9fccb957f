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
from vla_ros.training import hindsight, lerobot  # noqa: E402
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
    human: np.ndarray


def record(contract, text, frames=12, success=True, human=()):
    """`human`: the frames in which a person drove."""
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
        np.isin(np.arange(frames), human).astype(np.uint8),
    )


@pytest.fixture
def mixed(contract, demonstrations, tmp_path) -> Dataset:
    """Recorded episodes as new data, the simulator's as old."""
    features = StateFeatures(contract).of_states
    folder = tmp_path / "recorded"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{}")
    episodes = [record(contract, NEW), record(contract, "pick up the red cube"), record(contract, "x", success=False)]
    reader = reading(contract, {folder: episodes})
    return Dataset([folder], contract.hash, features, 0.2, None, [demonstrations], 0.5, reader)


def reading(contract, episodes):
    """A reader of these folders' episodes."""

    def reader(path):
        shard, skipped = lerobot.as_shard(str(path), episodes[path], StateFeatures(contract).of_states, None)
        return shard, lerobot.describe(shard, contract), skipped

    return reader


def corrected(contract, folder, human):
    """Makes `folder` a data set of 40 frames, in those of `human` a person drove; labels carry their frame. Returns its
    reader."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text("{}")
    episode = record(contract, NEW, 40, human=human)
    episode.chunk[:, 0, 0] = np.arange(40)
    return reading(contract, {folder: [episode]})


def corrected_data(contract, folder, human, human_share):
    features, reader = StateFeatures(contract).of_states, corrected(contract, folder, human)
    return Dataset([folder], contract.hash, features, 0.1, recorded=reader, human_share=human_share)


def drawn(data, steps=20):
    """Frame of every sample of the first batches."""
    tokenizer = Tokenizer.of(tasks.all_words() | set(split(NEW)), 18)
    batches = [data.training_batch(step, 50, 1, tokenizer, None) for step in range(steps)]
    return np.concatenate([batch.chunk[:, 0, 0] for batch in batches]).astype(int)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_a_person_corrected_is_drawn_as_often_as_asked(contract, tmp_path, share):
    """1,000 draws: one standard deviation is at most 0.016. As they come the two frames would be 0.056 of them."""
    frames = drawn(corrected_data(contract, tmp_path, (10, 11), share))
    assert abs(np.isin(frames, (10, 11)).mean() - share) < 0.07
    assert set(frames) == set(range(36))  # the others are drawn still; the last tenth validates
    assert abs(np.isin(drawn(corrected_data(contract, tmp_path, (10, 11), None)), (10, 11)).mean() - 2 / 36) < 0.04


@pytest.mark.parametrize("human", [(), range(40)])
def test_where_nobody_was_corrected_every_batch_is_what_it_was(contract, tmp_path, human):
    """No column, and demonstrations by a person alone: bit for bit as without the entry."""
    weighed, plain = (drawn(corrected_data(contract, tmp_path, human, share), 3) for share in (0.5, None))
    assert np.array_equal(weighed, plain)


@pytest.mark.parametrize("how", ["weights", "old_share"])
def test_shares_are_of_samples_and_corrections_count_within_their_folder(contract, demonstrations, tmp_path, how):
    """Of the simulator's pictures each comes with several sentences, of recorded ones with one."""
    features, reader = StateFeatures(contract).of_states, corrected(contract, tmp_path, (10, 11))
    folders = {
        "weights": ([tmp_path, demonstrations], (), 0.5, (1, 3)),
        "old_share": ([tmp_path], [demonstrations], 0.75, ()),
    }
    new, old, old_share, weights = folders[how]
    data = Dataset(new, contract.hash, features, 0.1, None, old, old_share, reader, weights, human_share=0.5)
    tokenizer = Tokenizer.of(tasks.all_words() | set(split(NEW)), 18)
    batches = [data.training_batch(step, 100, 1, tokenizer, None) for step in range(20)]
    recorded = np.concatenate([batch.aux[:, 0] for batch in batches])
    frames = np.concatenate([batch.chunk[:, 0, 0] for batch in batches])[np.isnan(recorded)]
    assert abs(np.isnan(recorded).mean() - 0.25) < 0.05
    assert abs(np.isin(frames, (10, 11)).mean() - 0.5) < 0.1


def test_what_the_gripper_did_tells_afterwards_where_the_things_were():
    """Closed on the thing in frame 2, lost it in 3, gripped it in 5 elsewhere, let it go in 8."""
    tool = np.zeros((10, 3), dtype=np.float32)
    tool[:, 0] = np.arange(10) / 10
    told = np.array([1, 1, 0, 1, 1, 0, 0, 0, 1, 1], dtype=np.float32)
    opening = np.full(10, 0.5, dtype=np.float32)
    aux = hindsight.places(tool, told, opening)
    assert (aux[:, :3] + tool)[:, 0] == pytest.approx([0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.8])
    assert (aux[:, 3:6] + tool)[:, 0] == pytest.approx(np.full(10, 0.8))
    assert (aux[:, 6] == 1.0).all()
    picked = hindsight.places(tool[:8], told[:8], opening[:8])  # it ends in the air: no destination
    assert (picked[:, :3] + tool[:8])[:, 0] == pytest.approx([0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.6, 0.7])
    assert (picked[:, 3:] == 0.0).all()


@pytest.mark.parametrize(
    ("told", "measured"),
    [
        ([1, 1, 0, 0, 1, 1], 0.02),  # fingers that met: something was pushed
        ([0, 0, 0, 0, 1, 1], 0.50),  # closed from the beginning
        ([1, 1, 1, 1, 1, 1], 0.50),
    ],
)
def test_a_gripper_that_held_nothing_tells_nothing(told, measured):
    aux = hindsight.places(np.ones((6, 3), np.float32), np.float32(told), np.full(6, measured, np.float32))
    assert np.isnan(aux).all()


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
