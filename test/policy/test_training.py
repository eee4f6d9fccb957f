"""The trainer and its data, on a tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from vla_ros.policy.features import StateFeatures  # noqa: E402
from vla_ros.policy.manifest import PolicyInvalid  # noqa: E402
from vla_ros.policy.model import NAMED, READ_SHARPER  # noqa: E402
from vla_ros.policy.tokenizer import Tokenizer  # noqa: E402
from vla_ros.sim import tasks  # noqa: E402
from vla_ros.training.config import ConfigInvalid, load_config  # noqa: E402
from vla_ros.training.dataset import Augment, Dataset, DatasetInvalid, Loader, move  # noqa: E402
from vla_ros.training.losses import aim_loss, point_loss  # noqa: E402
from vla_ros.training.train import run  # noqa: E402

pytestmark = pytest.mark.unit
QUIET = Console(quiet=True)
PATIENCE_S = 300  # on a machine that does other things, too


def weights(run):
    return load_file(run / "checkpoint" / "weights.safetensors") | {
        "average/" + k: v for k, v in load_file(run / "policy.safetensors").items()
    }


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_trainer, trained, tmp_path):
    first = make_trainer(tmp_path)
    run(first, None, QUIET, stop_at=5)
    second = make_trainer(tmp_path)
    assert second.resume() and second.step == 5
    run(second, None, QUIET)
    expected, found = weights(trained), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_a_checkpoint_of_another_model_is_not_resumed(make_trainer, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "state.json"
    facts = json.loads(path.read_text())
    facts["config"]["model"]["width"] = 64
    path.write_text(json.dumps(facts))
    with pytest.raises(ConfigInvalid, match="model"):
        make_trainer(tmp_path / "run").resume()


def test_a_new_run_starts_with_the_weights_of_another(make_trainer, trained, tmp_path):
    trainer = make_trainer(tmp_path / "run", start=trained)
    stored = load_file(trained / "policy.safetensors")
    for model in (*trainer.replicas, trainer.average):
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert trainer.step == 0 and trainer.config.point_steps == 0
    run(trainer, None, QUIET, stop_at=2)
    assert json.loads((tmp_path / "run" / "policy.json").read_text())["training"]["started_from"]["step"] == 8
    again = make_trainer(tmp_path / "run")
    assert again.resume() and again.started_from["step"] == 8


def test_a_start_that_points_in_another_way_learns_the_new_one_first(make_trainer, tmp_path):
    model = dataclasses.replace(make_trainer(tmp_path / "sizes").config.model, naming="summary", expect=False)
    run(make_trainer(tmp_path / "old", model=model), None, QUIET, stop_at=2)
    with pytest.raises(ConfigInvalid, match="give point_steps"):
        make_trainer(tmp_path / "run", start=tmp_path / "old", point_steps=0)
    trainer = make_trainer(tmp_path / "run", start=tmp_path / "old", point_steps=3)
    asked = NAMED * model.stem[2]
    stored = load_file(tmp_path / "old" / "policy.safetensors")
    given = {key: value.clone() for key, value in trainer.average.state_dict().items()}
    for key, value in given.items():
        if ".ask." in key:
            assert torch.equal(value, stored[key][asked:]), "the questions of the free keypoints stay"
        elif key not in trainer.fresh:
            assert torch.equal(value, stored[key]), key
    assert {key.split(".")[-2] for key in trainer.fresh if "cameras" in key or "text" in key} == {"ask_word", "roles"}
    run(trainer, None, QUIET, stop_at=2)
    half = load_file(tmp_path / "run" / "checkpoint" / "weights.safetensors")
    assert {key for key in half if not torch.equal(half[key], given[key])} == trainer.fresh
    again, whole = (
        make_trainer(tmp_path / "run", point_steps=3),
        make_trainer(tmp_path / "whole", start=tmp_path / "old", point_steps=3),
    )
    assert again.resume() and again.fitting
    for one in (again, whole):
        run(one, None, QUIET, stop_at=5)
        assert not one.fitting
    ends = [load_file(tmp_path / end / "policy.safetensors") for end in ("run", "whole")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(ends[0]["head.enter.weight"], given["head.enter.weight"])


def test_a_word_that_names_must_be_in_some_sentence(make_trainer, tmp_path):
    with pytest.raises(ConfigInvalid, match="names: purple: no sentence has"):
        make_trainer(tmp_path, names=("red", "purple"))


def test_new_words_get_rows_of_their_own_and_old_words_keep_their_meaning(make_trainer, trained, tmp_path):
    """New tasks bring new words; ids are alphabetical, so nearly every old word moves."""
    words = tasks.all_words() | {"aardvark", "middling", "zebra"}
    trainer = make_trainer(tmp_path / "run", words, trained)
    key = "backbone.text.words.weight"
    random = make_trainer(tmp_path / "random", words).model.state_dict()[key]
    stored, old = load_file(trained / "policy.safetensors"), Tokenizer.of(tasks.all_words(), 18).words
    for model in (*trainer.replicas, trainer.average):
        grown = model.state_dict()[key]
        for i, word in enumerate(trainer.tokenizer.words):
            assert torch.equal(grown[i], stored[key][old.index(word)] if word in old else random[i]), word
        assert torch.equal(model.state_dict()["head.enter.weight"], stored["head.enter.weight"])
    lost = sorted(tasks.all_words())[7]
    with pytest.raises(ConfigInvalid, match=rf"words that are gone: {lost}\)"):
        make_trainer(tmp_path / "less", tasks.all_words() - {lost}, trained)


def test_weights_of_another_contract_or_model_are_no_start(make_trainer, trained, tmp_path):
    for key, value in (("contract_hash", "f" * 64), ("vocabulary", ["x"])):
        other = shutil.copytree(trained, tmp_path / key)
        description = json.loads((other / "policy.json").read_text())
        (other / "policy.json").write_text(json.dumps(description | {key: value}))
        with pytest.raises((ConfigInvalid, PolicyInvalid)):
            make_trainer(tmp_path / "run", start=other)


def test_training_lowers_the_loss(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    batch = trainer.data.training_batch(0, 8, 0, trainer.tokenizer, None)
    losses = [trainer.train_step(batch, 0.0)["where_object"] for _ in range(15)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_every_gradient_lies_in_memory_like_its_parameter(make_trainer, tmp_path):
    """The fused optimizer walks raw memory: with another layout it would update the wrong taps of a convolution."""
    trainer = make_trainer(tmp_path)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train_step(trainer.data.training_batch(0, 8, 0, trainer.tokenizer, None), 0.0)
    for name, p in trainer.model.named_parameters():
        assert p.grad.stride() == p.stride(), name
        if p.ndim == 4 and float(p.grad.abs().max()) > 0:  # Adam's first step goes against the sign of the gradient
            moved = (p.detach() - before[name])[p.grad.abs() > 1e-3 * p.grad.abs().max()]
            assert torch.equal(moved.sign(), -p.grad[p.grad.abs() > 1e-3 * p.grad.abs().max()].sign()), name


def test_pointing_is_best_at_the_truth_and_ignores_what_cannot_be_seen():
    side, cells = 8, 64
    point = torch.tensor([[[[0.55, 0.3, 1.0], [0.9, 0.9, 0.0]]]])  # (1, 1, 2, 3); the destination is out of view

    def loss(u, v, other=0.0):
        named = torch.zeros(1, 1, 2, cells)
        named[0, 0, 0, int(v * side) * side + int(u * side)] = 3.0
        named[0, 0, 1, 0] = other
        return float(point_loss(named, point))

    assert loss(0.55, 0.3) < min(loss(0.3, 0.55), loss(0.8, 0.3), loss(0.55, 0.8))
    assert loss(0.55, 0.3, other=5.0) == loss(0.55, 0.3)


def test_the_place_that_is_read_is_drawn_to_the_truth_not_to_the_cell():
    """Between two cells the best answer is both of them, by how near each is; what is out of view teaches nothing."""
    side = 8
    point = torch.tensor([[[[(2.25 + 0.5) / side, (5.0 + 0.5) / side, 1.0], [0.9, 0.9, 0.0]]]])
    named = torch.zeros(1, 1, 2, side * side, requires_grad=True)
    optimizer = torch.optim.Adam([named], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = aim_loss(named, point)
        loss.backward()
        assert not named.grad[0, 0, 1].any()
        optimizer.step()
    assert float(loss) < 1e-5
    share = (READ_SHARPER * named[0, 0, 0]).softmax(0).view(side, side).detach()
    assert abs(float(share.sum(0) @ torch.arange(side).float()) - 2.25) < 0.02
    assert abs(float(share.sum(1) @ torch.arange(side).float()) - 5.0) < 0.02


def test_a_step_with_a_non_finite_loss_changes_nothing(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    batch = trainer.data.training_batch(0, 8, 0, trainer.tokenizer, None)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    chunk = batch.chunk.copy()
    chunk[0, 0, 0] = np.nan
    assert trainer.train_step(dataclasses.replace(batch, chunk=chunk), 0.0) is None
    assert all(torch.equal(before[k], v) for k, v in trainer.model.named_parameters())


def test_the_average_follows_the_weights(make_trainer, trained):
    raw, average = load_file(trained / "checkpoint" / "weights.safetensors"), load_file(trained / "policy.safetensors")
    key = "head.enter.weight"
    assert not torch.equal(raw[key], average[key]) and torch.allclose(raw[key], average[key], atol=0.05)


def test_sigterm_saves_and_the_same_command_goes_on(demonstrations, training_file, tmp_path):
    config = yaml.safe_load(training_file.read_text()) | {"steps": 100_000, "validation_every": 100_000}
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "vla_ros.cli.main",
        "train",
        str(path),
        "--data",
        str(demonstrations),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended by itself: {process.wait(0.1)}, {process.stdout.read()}")
    assert log.exists() and log.stat().st_size, f"no report within {PATIENCE_S} s"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "saved at step" in output
    step = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"]
    assert step >= 20
    config["steps"] = step + 1
    path.write_text(yaml.safe_dump(config))
    again = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert again.returncode == 0 and f"resumed at step {step}" in again.stderr, again.stdout + again.stderr


def test_a_wrong_training_file_is_refused_with_every_wrong_entry(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("batch: 0\nsteps: many\nunheard_of: 1\nmodel: {objective: flow, colour: 3}\n")
    with pytest.raises(ConfigInvalid) as error:
        load_config(path)
    for word in ("batch", "steps", "unheard_of", "colour"):
        assert word in str(error.value)


def test_the_shipped_training_file_is_valid():
    from vla_ros import paths

    load_config(paths.config_dir() / "train" / "nano.yaml").model.validate()


# ------------------------------------------------------------------------------------------------ data


@pytest.fixture
def open_data(contract):
    def open_(folder):
        return Dataset([folder], contract.hash, StateFeatures(contract).of_states, 0.2)

    return open_


@pytest.fixture
def tokenizer():
    return Tokenizer.of(tasks.all_words(), 18)


def test_a_batch_depends_on_seed_and_step_alone(open_data, demonstrations, tokenizer):
    a, b = (open_data(demonstrations).training_batch(3, 6, 1, tokenizer, Augment()) for _ in range(2))
    c = open_data(demonstrations).training_batch(4, 6, 1, tokenizer, Augment())
    assert np.array_equal(a.images, b.images) and np.array_equal(a.ids, b.ids) and np.array_equal(a.gain, b.gain)
    assert not np.array_equal(a.images, c.images)


def test_no_frame_is_used_for_training_and_validation(open_data, demonstrations):
    data = open_data(demonstrations)
    frames = [{(s, int(data.shards[s].frame[i])) for s, i in part} for part in (data.train, data.validation)]
    assert frames[0] and frames[1] and not frames[0] & frames[1]


def test_several_folders_count_as_one_data_set_and_must_be_of_one_kind(contract, demonstrations, tmp_path):
    features = StateFeatures(contract).of_states
    one = Dataset([demonstrations], contract.hash, features, 0.2)
    two = Dataset([demonstrations, demonstrations], contract.hash, features, 0.2)
    assert len(two.train) == 2 * len(one.train) and [m["seed"] for m in two.sources] == [5, 5]
    other = shutil.copytree(demonstrations, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"shapes": ["cube"]}))
    with pytest.raises(DatasetInvalid, match="shapes"):
        Dataset([demonstrations, other], contract.hash, features, 0.2)


def test_finished_tasks_are_drawn_more_often_when_asked(open_data, demonstrations, tokenizer):
    data = open_data(demonstrations)
    seldom, often = (
        np.mean([data.training_batch(k, 64, 1, tokenizer, None, share).done.mean() for k in range(8)])
        for share in (0.0, 0.4)
    )
    by_chance = np.mean([data.shards[s].done[i] for s, i in data.train])
    assert abs(seldom - by_chance) < 0.07
    assert often > seldom + 0.1  # the picture of each brings its other sentences along, mostly not done


def test_a_family_is_drawn_as_often_as_asked(contract, demonstrations):
    data = Dataset([demonstrations], contract.hash, StateFeatures(contract).of_states, 0.2, families={"stack": 3.0})
    names = list(tasks.FAMILIES)
    family = np.repeat(np.arange(len(names)), [5, 50, 10, 10, 10, 500])  # how many labels there are counts for nothing
    rows = data._rows(family, np.zeros(len(family), dtype=bool), family != names.index("put"))
    rng = np.random.default_rng(7)
    drawn = np.bincount([family[rows.family(rng)[0][0]] for _ in range(2000)], minlength=len(names)) / 2000
    shares = np.array([{"put": 0.0, "stack": 3.0}.get(name, 1.0) for name in names])
    assert np.allclose(drawn, shares / shares.sum(), atol=0.04)


def test_pictures_are_mapped_where_they_do_not_fit_into_memory(contract, demonstrations, monkeypatch):
    monkeypatch.setattr("vla_ros.training.dataset.fits_in_memory", lambda folders: False)
    mapped = Dataset([demonstrations], contract.hash, StateFeatures(contract).of_states, 0.2)
    monkeypatch.setattr("vla_ros.training.dataset.fits_in_memory", lambda folders: True)
    read = Dataset([demonstrations], contract.hash, StateFeatures(contract).of_states, 0.2)
    assert isinstance(mapped.shards[0].images, np.memmap) and not isinstance(read.shards[0].images, np.memmap)
    assert np.array_equal(mapped.shards[0].images, read.shards[0].images)


@pytest.mark.parametrize("damage", ["truncate", "remove", "nan", "short"])
def test_a_corrupt_shard_is_left_out_counted_and_named(open_data, demonstrations, tmp_path, damage):
    folder = shutil.copytree(demonstrations, tmp_path / "data")
    path = folder / "0001.label_chunk.npy"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "remove":
        path.unlink()
    else:
        chunk = np.load(path)
        chunk[0, 0, 0] = np.nan
        np.save(path, chunk if damage == "nan" else np.nan_to_num(chunk)[:-1])
    data = open_data(folder)
    assert [s.name for s in data.shards] == ["0000"]
    assert len(data.skipped) == 1 and "0001.label_chunk.npy" in data.skipped[0]


def test_data_of_another_contract_or_format_is_refused(open_data, demonstrations, tmp_path):
    for key, value in (("contract_hash", "f" * 64), ("format", 9)):
        folder = tmp_path / key
        shutil.copytree(demonstrations, folder)
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {key: value}))
        with pytest.raises(DatasetInvalid, match=key):
            open_data(folder)
    with pytest.raises(DatasetInvalid, match=r"meta\.json"):
        open_data(tmp_path / "nowhere")


def test_an_error_in_the_loader_thread_reaches_the_training_loop():
    def make(step):
        raise DatasetInvalid(f"batch {step}")

    loader = Loader(make, 7, 9)
    with pytest.raises(DatasetInvalid, match="batch 7"):
        loader.next()
    loader.close()


def test_a_moved_picture_keeps_its_pixels():
    source = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    target = np.zeros_like(source)
    move(source, target, 1, -2)
    assert np.array_equal(target[1:, :3], source[:4, 2:])
    move(source, target, 0, 0)
    assert np.array_equal(target, source)


def test_state_features_are_the_same_one_by_one_and_in_bulk(contract):
    features = StateFeatures(contract)
    states = np.zeros((3, 8), dtype=np.float32)
    states[:, :7] = contract.poses.ready_rad + np.random.default_rng(0).normal(0, 0.1, (3, 7))
    states[:, 7] = (0.0, 0.04, 0.08)
    bulk = features.of_states(states)
    assert bulk.shape == (3, features.size) == (3, 17)
    assert np.array_equal(bulk[1], features(states[1, :7].astype(float), float(states[1, 7])))
    assert np.allclose(bulk[:, 7], (0.0, 0.5, 1.0), atol=1e-6)
    assert np.allclose(np.linalg.norm(bulk[:, 11:14], axis=1), 1.0, atol=1e-5)
