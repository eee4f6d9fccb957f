"""The pretrained backbone, on a tiny random checkpoint that is built here: nothing is downloaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rich.console import Console  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from vla_ros.policy.manifest import PolicyInvalid  # noqa: E402
from vla_ros.policy.model import ModelConfig, Policy  # noqa: E402
from vla_ros.policy.tokenizer import SPECIAL  # noqa: E402
from vla_ros.policy.torch_runtime import load_run, read_run  # noqa: E402
from vla_ros.sim import tasks  # noqa: E402
from vla_ros.training.train import run  # noqa: E402

pytestmark = pytest.mark.unit
QUIET = Console(quiet=True)
WORDS = (*SPECIAL, "cube", "pick", "red", "zebra")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Weights, tokenizer and image processor of a SmolVLM with 3 layers of 32 channels."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    folder = tmp_path_factory.mktemp("checkpoint")
    text = {"model_type": "llama", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 4}
    torch.manual_seed(0)
    config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=5)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([" ".join(sorted(tasks.all_words()))] * 5, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    SmolVLMImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture
def config(checkpoint) -> ModelConfig:
    return ModelConfig(
        backbone="smolvlm",
        vlm=str(checkpoint),
        layers=2,
        width=32,
        heads=2,
        text_tokens=6,
        vocabulary=len(WORDS),
        image_px=32,
        action_queries=2,
        steps=2,
        word_pieces=6,
    )


@pytest.fixture
def model(config) -> Policy:
    torch.manual_seed(0)
    model = Policy(config)
    model.backbone.learn_words(WORDS)
    model.backbone.load_pretrained()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "leave" in name or "modulation" in name:
                p.normal_(std=0.3)
    return model.eval()


def inputs():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8, generator=g)
    ids = torch.tensor([[3, 4, 2, 0, 0, 0], [3, 5, 4, 2, 0, 0]])
    return images, ids, torch.randn(2, 17, generator=g), torch.randn(2, 16, 7, generator=g)


@torch.no_grad()
def test_the_bridge_head_reads_every_layer_that_is_used(model, checkpoint):
    images, ids, state, noise = inputs()
    memory = model.observe(images, ids, state)
    raw = 1 + 6 * 6 + 2 * 16  # begin, six words of six pieces, two pictures of 4 x 4 tokens
    assert [k.shape for k, _ in memory.raw] == [(2, 2, raw, 16)] * 2
    assert [k.shape for k, _ in memory.near] == [(2, 2, 1 + 2, 16)] * 2
    assert memory.named.shape == (2, 2, 2, 16)
    assert not torch.equal(memory.raw[0][0], memory.raw[1][0])
    chunk, done, sure = model(images, ids, state, noise)
    assert chunk.shape == (2, 16, 7) and torch.isfinite(chunk).all() and done.shape == sure.shape == (2,)
    stored = load_file(checkpoint / "model.safetensors")
    used = model.backbone.vlm.text_model.layers
    assert len(used) == 2
    assert torch.equal(used[1].mlp.up_proj.weight, stored["model.text_model.layers.1.mlp.up_proj.weight"])


@torch.no_grad()
def test_words_and_pictures_and_state_change_the_chunk_and_padding_does_not(model):
    images, ids, state, noise = inputs()
    chunk = model(images, ids, state, noise)[0]
    other = ids.clone()
    other[:, 1] = 2
    for changed in (
        model(images, other, state, noise)[0],
        model(255 - images, ids, state, noise)[0],
        model(images, ids, state + 0.5, noise)[0],
    ):
        assert (changed - chunk).abs().max() > 1e-6
    embedding = model.backbone.vlm.text_model.get_input_embeddings().weight
    unused = sorted(set(range(len(embedding))) - set(model.backbone.pieces.flatten().tolist()) - {1})
    embedding[unused] += 3.0  # also the token that stands in for padding
    assert torch.allclose(model(images, ids, state, noise)[0], chunk, atol=1e-6)


@torch.no_grad()
def test_what_a_picture_token_says_depends_on_the_words(model):
    """Words stand first: in a causal model only what comes later can know them."""
    images, ids, state, _ = inputs()
    pictures, other = images.permute(0, 1, 4, 2, 3) / 127.5 - 1, ids.clone()
    other[:, 1] = 2
    assert not torch.allclose(model.point(pictures, ids, state), model.point(pictures, other, state))


def test_words_become_the_checkpoints_own_tokens(model, checkpoint, config):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    row = [i for i in model.backbone.pieces[4].tolist() if i >= 0]
    assert row == tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert set(model.backbone.pieces[0].tolist()) == {-1}
    short = Policy(dataclasses.replace(config, word_pieces=1))
    with pytest.raises(PolicyInvalid, match=r"zebra.*word_pieces"):
        short.backbone.learn_words(WORDS)


def test_a_folder_that_is_no_such_checkpoint_is_refused(config, checkpoint, tmp_path):
    def refused(folder, said):
        with pytest.raises(PolicyInvalid, match=said):
            policy = Policy(dataclasses.replace(config, vlm=str(folder)))
            policy.backbone.learn_words(WORDS)
            policy.backbone.load_pretrained()

    refused(tmp_path, r"config\.json")
    with pytest.raises(PolicyInvalid, match=r"has 3 layers, model\.layers = 9"):
        Policy(dataclasses.replace(config, layers=9))
    other = shutil.copytree(checkpoint, tmp_path / "other")
    facts = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(facts | {"model_type": "llama"}))
    refused(other, "model_type is 'llama'")
    pickled = shutil.copytree(checkpoint, tmp_path / "pickled")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(pickled, "pickle")
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    refused(bare, "safetensors only")


@pytest.mark.parametrize("tune", ["head", "lora", "full"])
def test_it_trains_frozen_adapted_or_tuned_and_runs_from_its_run_folder(
    make_trainer, checkpoint, contract, observation, tmp_path, tune
):
    pytest.importorskip("peft")
    source = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    plain = make_trainer(tmp_path / "plain").config.model
    model = dataclasses.replace(
        plain, backbone="smolvlm", vlm=str(source), layers=2, word_pieces=8, objective="l1", image_px=112
    )
    trainer = make_trainer(tmp_path / "run", model=model, tune=tune, lora_rank=2, batch=4)
    run(trainer, None, QUIET, stop_at=2)
    shutil.rmtree(source)  # the run folder carries what it needs
    policy, _ = read_run(tmp_path / "run")
    stored = load_file(checkpoint / "model.safetensors")
    weight = policy.backbone.vlm.text_model.layers[0].self_attn.q_proj.weight
    same = torch.equal(weight, stored["model.text_model.layers.0.self_attn.q_proj.weight"])
    assert same == (tune == "head")
    runtime = load_run(tmp_path / "run", contract)
    output = runtime.infer(observation, "pick up the red cube", np.random.default_rng(0))
    assert output.data.shape == (16, 7) and np.isfinite(output.data).all()
