"""Fine-tuning: what may be started from, what is trained, how old and new data mix."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from vla_ros.core.types import ActionSpace  # noqa: E402
from vla_ros.policy import adapters  # noqa: E402
from vla_ros.policy.features import StateFeatures  # noqa: E402
from vla_ros.policy.manifest import PolicyInvalid  # noqa: E402
from vla_ros.policy.tokenizer import Tokenizer  # noqa: E402
from vla_ros.policy.torch_runtime import load_run, read_run  # noqa: E402
from vla_ros.sim import tasks  # noqa: E402
from vla_ros.training.actions import ActionLabels  # noqa: E402
from vla_ros.training.config import ConfigInvalid, Weights, load_config  # noqa: E402
from vla_ros.training.dataset import Dataset, DatasetInvalid  # noqa: E402
from vla_ros.training.losses import Teacher, losses, pixels, spread  # noqa: E402
from vla_ros.training.precision import has_bfloat16  # noqa: E402
from vla_ros.training.train import run, train  # noqa: E402

pytestmark = pytest.mark.unit
QUIET = Console(quiet=True)


def changed(before, after):
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_tuning_the_head_leaves_the_backbone_as_it_was(make_trainer, trained, tmp_path):
    trainer = make_trainer(tmp_path, start=trained, tune="head")
    run(trainer, None, QUIET, stop_at=2)
    moved = changed(load_file(trained / "policy.safetensors"), load_file(tmp_path / "policy.safetensors"))
    assert "head.enter.weight" in moved
    assert not [key for key in moved if key.startswith("backbone.")]


def test_senses_of_another_run_are_taken_and_the_rest_is_learned_anew(make_trainer, trained, tmp_path):
    from vla_ros.training.config import ConfigInvalid

    theirs = load_file(trained / "policy.safetensors")
    anew = make_trainer(tmp_path / "anew").model.state_dict()
    given = make_trainer(tmp_path / "given", senses=trained).average.state_dict()
    senses = {key for key in theirs if key.startswith(("backbone.text.", "backbone.cameras.", "backbone.expect."))}
    assert not changed({key: theirs[key] for key in senses}, {key: given[key] for key in senses})
    assert changed(anew, given) <= senses
    with pytest.raises(ConfigInvalid, match="another contract or vocabulary"):
        make_trainer(tmp_path / "words", words={"push", "pull"}, names=(), senses=trained)


def test_backbone_of_another_run_is_given_and_the_head_alone_learns_from_nothing(make_trainer, trained, tmp_path):
    theirs = load_file(trained / "policy.safetensors")
    anew = make_trainer(tmp_path / "anew").model.state_dict()
    trainer = make_trainer(tmp_path / "given", senses=trained, tune="head", point_steps=0)
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert all(key.startswith("backbone.") for key in changed(anew, start))
    assert not [key for key in changed(theirs, start) if key.startswith("backbone.")]
    run(trainer, None, QUIET, stop_at=2)
    moved = changed(start, trainer.model.state_dict())
    assert "head.enter.weight" in moved
    assert not [key for key in moved if key.startswith("backbone.")]


def test_tuning_by_adapters_ends_in_plain_weights_and_resumes_bit_for_bit(make_trainer, trained, tmp_path):
    pytest.importorskip("peft")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(make_trainer(whole, start=trained, tune="lora", lora_rank=2), None, QUIET, stop_at=3)
    run(make_trainer(parts, start=trained, tune="lora", lora_rank=2), None, QUIET, stop_at=2)
    again = make_trainer(parts, tune="lora", lora_rank=2)
    assert again.resume() and again.step == 2
    run(again, None, QUIET, stop_at=3)
    one, two = load_file(whole / "policy.safetensors"), load_file(parts / "policy.safetensors")
    assert changed(one, two) == set()
    moved = changed(load_file(trained / "policy.safetensors"), one)
    assert {"backbone.blocks.0.qkv.weight", "head.enter.weight"} <= moved
    assert not [key for key in moved if key.startswith("backbone.cameras") and "stem" in key], "convolutions are frozen"
    assert read_run(whole)[1]["training"]["config"]["tune"] == "lora"


@torch.no_grad()
def test_merged_adapters_compute_what_they_computed_beside_the_weights(trained):
    pytest.importorskip("peft")
    model, _ = read_run(trained)
    image, ids = torch.randint(0, 255, (1, 2, 112, 112, 3), dtype=torch.uint8), torch.ones(1, 18, dtype=torch.long)
    names = set(model.state_dict())
    plain = model.observe(image, ids, torch.zeros(1, 17)).pooled
    adapters.add(model.backbone.learned, 2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.1)
    beside = model.observe(image, ids, torch.zeros(1, 17)).pooled
    adapters.merge(model.backbone.learned)
    merged = model.observe(image, ids, torch.zeros(1, 17)).pooled
    assert (beside - plain).abs().max() > 1e-3
    assert torch.allclose(merged, beside, atol=1e-4)
    assert set(model.state_dict()) == names


def test_a_backbone_that_nobody_taught_is_not_frozen(make_trainer, trained, tmp_path):
    for tune in ("head", "lora"):
        with pytest.raises(ConfigInvalid, match="--from"):
            make_trainer(tmp_path, tune=tune)
    with pytest.raises(ConfigInvalid, match="zebra"):
        make_trainer(tmp_path, tasks.all_words() | {"zebra"}, trained, tune="head")


def test_a_start_or_checkpoint_with_a_pickle_is_refused(make_trainer, trained, tmp_path):
    start = shutil.copytree(trained, tmp_path / "start")
    (start / "weights.pt").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(PolicyInvalid, match=r"weights\.pt.*pickle"):
        make_trainer(tmp_path / "run", start=start)
    old = shutil.copytree(trained, tmp_path / "old")
    (old / "checkpoint" / "optimizer.pt").write_bytes(pickle.dumps({"state": 1}))
    with pytest.raises(ConfigInvalid, match=r"optimizer\.pt.*pickle.*--from"):
        make_trainer(old).resume()


def test_a_damaged_checkpoint_is_refused_by_name(make_trainer, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    path = out / "checkpoint" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigInvalid, match="checkpoint: damaged"):
        make_trainer(out).resume()


def test_a_policy_folder_is_a_start_if_it_holds_weights(make_trainer, trained, policy_folder, tmp_path):
    trainer = make_trainer(tmp_path / "run", start=policy_folder)
    stored = load_file(trained / "policy.safetensors")
    assert changed(stored, {k: v.contiguous() for k, v in trainer.average.state_dict().items()}) == set()
    assert trainer.started_from["step"] == 8


def test_a_policy_folder_of_graphs_alone_is_no_start(make_trainer, policy_folder, tmp_path):
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    (folder / "policy.safetensors").unlink()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["policy.safetensors"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(PolicyInvalid, match="start from the run"):
        make_trainer(tmp_path / "run", start=folder)


# ------------------------------------------------------------------------------------------------ data


def variant(folder, to, **changes):
    """The same demonstrations with another description."""
    shutil.copytree(folder, to)
    meta = json.loads((to / "meta.json").read_text())
    (to / "meta.json").write_text(json.dumps(meta | changes))
    return to


def test_old_data_makes_up_its_share_of_every_batch(demonstrations, contract, tmp_path):
    features = StateFeatures(contract).of_states
    old = variant(demonstrations, tmp_path / "old", seed=6)
    data = Dataset([demonstrations], contract.hash, features, 0.2, None, [old], 0.25)
    tokenizer = Tokenizer.of(tasks.all_words(), 18)
    for shard in data.shards[2:]:
        shard.chunk[...] = 7.0
    batches = [data.training_batch(k, 64, 1, tokenizer, None) for k in range(8)]
    share = np.mean([np.mean(batch.chunk[:, 0, 0] == 7.0) for batch in batches])
    assert abs(share - 0.25) < 0.08
    assert {int(s) for s, _ in data.validation} == {0, 1} and {int(s) for s, _ in data.old_validation} == {2, 3}


def with_old(make_trainer, demonstrations, contract, out, **changes):
    """A trainer for which half of the samples are old."""
    trainer = make_trainer(out, **changes)
    features = StateFeatures(contract).of_states
    actions = ActionLabels(contract, trainer.config.model.rows, trainer.config.model.action_space)
    trainer.data = Dataset([demonstrations], contract.hash, features, 0.2, actions, [demonstrations], 0.5)
    return trainer


def picked(trainer, old):
    """A batch of nothing but old samples, or of nothing but new ones."""
    rows = trainer.data.train[(trainer.data.train[:, 0] >= trainer.data.new_shards) == old]
    batch = trainer.data.batch(rows[:12], np.random.default_rng(3), trainer.tokenizer, None)
    assert batch.old.all() if old else not batch.old.any()
    return batch


@pytest.mark.parametrize("objective", ["flow", "l1", "mip"])
def test_a_policy_that_answers_as_before_has_nothing_to_learn_from_old_samples(
    make_trainer, demonstrations, contract, tmp_path, objective
):
    """Learning without forgetting (1606.09282): every gradient of an old sample is 0, whatever its labels say."""
    model = dataclasses.replace(make_trainer(tmp_path).config.model, objective=objective)
    weights = Weights(aim=0.0, sure=0.0)  # confidence is about the truth, never about what was answered before
    trainer = with_old(make_trainer, demonstrations, contract, tmp_path, model=model, keep=1.0, weights=weights)
    torch.nn.init.normal_(trainer.model.head.leave.weight)  # an answer that is not 0 everywhere
    before = copy.deepcopy(trainer.model).eval()

    def steepest(old, teacher):
        generator = torch.Generator().manual_seed(0)
        total, _ = losses(trainer.model.eval(), trainer.config, picked(trainer, old), generator, teacher)
        gradients = torch.autograd.grad(total, list(trainer.model.parameters()), allow_unused=True)
        return max(float(g.abs().max()) for g in gradients if g is not None)

    assert steepest(old=True, teacher=before) < 1e-5 < 1e-2 < steepest(old=True, teacher=None)
    assert steepest(old=False, teacher=before) == steepest(old=False, teacher=None)


def test_answers_are_kept_as_far_as_the_setting_says(make_trainer, demonstrations, contract, tmp_path):
    trainer = with_old(make_trainer, demonstrations, contract, tmp_path, keep=0.25)
    batch = picked(trainer, old=True)
    images = pixels(batch, torch.device("cpu"))
    teacher = Teacher.of(trainer.model.eval(), images, batch, trainer.config.keep)
    label, known = torch.zeros(len(batch.old), 3), trainer.model.where_object(teacher.memory.pooled)
    assert torch.allclose(teacher.pooled(label, trainer.model.where_object), 0.25 * known)
    truth = spread(torch.from_numpy(batch.point), teacher.memory.named.shape[-1])
    cells = teacher.point(truth, "words")
    assert torch.allclose(cells.sum(-1), torch.ones_like(cells[..., 0]), atol=1e-4), "still shares of one place"
    assert torch.equal(teacher.point(truth, "summary"), truth), "who points in another way is taught by the truth"


def test_keeping_answers_goes_with_old_data_and_a_policy_from_before(
    trained, demonstrations, training_file, contract, tmp_path
):
    config = load_config(training_file).model_copy(update={"keep": 1.0, "steps": 3})
    other = variant(demonstrations, tmp_path / "other", seed=6)
    with pytest.raises(ConfigInvalid, match=r"keep = 1, with old data: .*--from"):
        train(config, [other], tmp_path / "run", old_folders=[demonstrations], console=QUIET)
    train(config, [other], tmp_path / "run", old_folders=[demonstrations], start=trained, console=QUIET)
    before, after = (load_file(tmp_path / "run" / name / "policy.safetensors") for name in ("before", ""))
    moved = changed(before, after)
    assert "head.enter.weight" in moved
    assert not [key for key in moved if "running_" in key], "both see through the same statistics"
    config = config.model_copy(update={"steps": 4})
    assert train(config, [other], tmp_path / "run", old_folders=[demonstrations], console=QUIET)["step"] == 4


def test_forgetting_is_reported_beside_what_is_learned(make_trainer, demonstrations, contract, tmp_path):
    from vla_ros.training.train import judge

    trainer = make_trainer(tmp_path)
    features = StateFeatures(contract).of_states
    trainer.data = Dataset([demonstrations], contract.hash, features, 0.2, None, [demonstrations], 0.5)
    judge(trainer)
    assert trainer.validation["row4_mm"] == trainer.validation["old/row4_mm"]


def test_each_folder_gives_its_weight_of_every_batch(demonstrations, contract, tmp_path):
    features = StateFeatures(contract).of_states
    other = variant(demonstrations, tmp_path / "other", seed=6)
    data = Dataset([demonstrations, other], contract.hash, features, 0.2, weights=(3.0, 1.0))
    tokenizer = Tokenizer.of(tasks.all_words(), 18)
    for shard in data.shards[2:]:
        shard.chunk[...] = 7.0
    batches = [data.training_batch(k, 64, 1, tokenizer, None) for k in range(8)]
    assert abs(np.mean([np.mean(batch.chunk[:, 0, 0] == 7.0) for batch in batches]) - 0.25) < 0.08


@pytest.mark.parametrize("weights, old", [((1.0,), []), ((1.0, 0.0), []), ((1.0, float("nan")), []), ((1.0, 1.0), [0])])
def test_weights_that_make_no_mixture_are_refused(demonstrations, contract, weights, old):
    features = StateFeatures(contract).of_states
    with pytest.raises(DatasetInvalid, match="weights are"):
        Dataset(
            [demonstrations] * 2, contract.hash, features, 0.2, None, [demonstrations for _ in old], weights=weights
        )


def test_weights_are_given_beside_their_folders(tmp_path):
    from vla_ros.cli.report import CliError
    from vla_ros.cli.train import weighted

    (tmp_path / "a=1").mkdir()
    assert weighted([tmp_path / "new=0.7", tmp_path / "old=0.3"]) == ([tmp_path / "new", tmp_path / "old"], [0.7, 0.3])
    assert weighted([tmp_path / "a=1", tmp_path / "b"]) == ([tmp_path / "a=1", tmp_path / "b"], []), "folders' names"
    for wrong in (["new=0.7", "old"], ["new=-1", "old=2"], ["new=nan", "old=1"]):
        with pytest.raises(CliError, match="DIR=WEIGHT for every folder"):
            weighted([tmp_path / name for name in wrong])


def test_older_data_that_knows_fewer_families_may_be_mixed_in(demonstrations, contract, tmp_path):
    features = StateFeatures(contract).of_states
    families = list(tasks.FAMILIES)
    old = variant(demonstrations, tmp_path / "old", families=families[:2])
    for folders in ([old, demonstrations], [demonstrations, old]):
        assert Dataset(folders, contract.hash, features, 0.2).meta["families"] == families
    for name, wrong in (("swapped", families[1::-1]), ("unknown", [*families, "juggle"])):
        with pytest.raises(DatasetInvalid, match=rf"{name}.*families"):
            Dataset([demonstrations, variant(demonstrations, tmp_path / name, families=wrong)], contract.hash, features)


def test_chunk_length_is_a_setting(make_trainer, trained, tmp_path):
    model = dataclasses.replace(make_trainer(tmp_path).config.model, rows=4, prefix_max=2)
    trainer = make_trainer(tmp_path, model=model)
    run(trainer, None, QUIET, stop_at=1)
    stored, description = read_run(tmp_path)
    assert stored.action_mean.shape == (4, 7) and description["model"]["rows"] == 4
    with pytest.raises(DatasetInvalid, match=r"16 rows, model\.rows asks for 17"):
        make_trainer(tmp_path, model=dataclasses.replace(model, rows=17))


def test_joint_positions_are_an_action_space(make_trainer, contract, tmp_path, observation):
    """The same motion: where the joints of a row put the tool is where the tool target was."""
    labels = ActionLabels(contract, 16, "joint_position")
    state = np.float32([[*contract.poses.ready_rad, 0.08]])
    chunk = np.zeros((1, 16, 7), dtype=np.float32)
    chunk[0, :, :3] = np.linspace(0, 1, 16)[:, None] * (0.03, -0.02, -0.05)
    joints = labels(state, chunk)[0]
    assert joints.shape == (16, 8)
    from vla_ros.core.kinematics import Kinematics

    kinematics = Kinematics(contract)
    _, start = kinematics.tool_pose(contract.poses.ready_rad)
    for row, target in zip(joints, chunk[0], strict=True):
        assert np.allclose(kinematics.tool_pose(row[:7].astype(float))[1] - start, target[:3], atol=1e-3)

    model = dataclasses.replace(make_trainer(tmp_path).config.model, action_space="joint_position")
    run(make_trainer(tmp_path, model=model), None, QUIET, stop_at=1)
    runtime = load_run(tmp_path, contract)
    assert ActionSpace[runtime.manifest.action_space.upper()] is ActionSpace.JOINT_POSITION
    assert runtime.infer(observation, "pick up the red cube", np.random.default_rng(0)).data.shape == (16, 8)


def test_mixed_precision_is_for_computing_and_weights_stay_float(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, mixed_precision="auto")
    assert trainer.bfloat16 == has_bfloat16(torch.device("cpu"))
    run(trainer, None, QUIET, stop_at=2)
    stored = load_file(tmp_path / "policy.safetensors")
    assert all(
        value.dtype == torch.float32 and torch.isfinite(value).all()
        for key, value in stored.items()
        if "num_" not in key
    )
