"""Weights and optimizer state on disk: safetensors and JSON only, written aside and then put in place.

Nothing is ever loaded from a pickle: that would run the code of whoever made it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_ros.policy import manifest as manifests
from vla_ros.policy.manifest import PolicyInvalid, refuse_pickles
from vla_ros.policy.model import NAMED, ModelConfig, Policy
from vla_ros.policy.torch_runtime import DESCRIPTION, WEIGHTS, read_run
from vla_ros.training.config import ConfigInvalid

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, beside its step
SENSES = (
    "backbone.text.",
    "backbone.cameras.",
    "backbone.expect.",
)  # parameters of a nano model that find what the words name


def replace_folder(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`; after a crash at any point one of them is complete."""
    if old.exists():
        gone = old.with_name(old.name + ".gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(old, gone)
        os.replace(new, old)
        shutil.rmtree(gone)
    else:
        os.replace(new, old)


def find_checkpoint(out: Path) -> Path | None:
    """The checkpoint of a run folder, also after a crash between the two renames; None where there is none."""
    folder, gone = out / "checkpoint", out / "checkpoint.gone"
    if not folder.exists() and gone.exists():
        os.replace(gone, folder)
    if not folder.exists():
        return None
    try:
        refuse_pickles(folder)
    except PolicyInvalid as error:
        raise ConfigInvalid(f"{error}; to go on with its weights, start a new run with --from {out}") from error
    return folder


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name; empty before the first step."""
    tensors = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; a parameter that has not learned yet has no state. Raises KeyError where a part
    of one is missing."""
    if not tensors:
        return
    for name, p in model.named_parameters():
        if not p.requires_grad or not any(f"{key}/{name}" in tensors for key in ("step", *MOMENTS)):
            continue
        # In the parameter's own memory layout: the fused optimizer walks raw memory.
        state = {key: torch.empty_like(p).copy_(tensors[f"{key}/{name}"]) for key in MOMENTS}
        optimizer.state[p] = {"step": tensors[f"step/{name}"].to(p.device), **state}


def read_start(folder: Path, contract_hash: str) -> tuple[Policy, dict[str, Any]]:
    """Model and description of what `--from` names: a run folder, a snapshot, or a policy folder that holds weights.

    Raises PolicyInvalid."""
    if not (folder / manifests.FILE_NAME).exists():
        if folder.is_dir():
            refuse_pickles(folder)
        return read_run(folder)
    manifest = manifests.read(folder, contract_hash)
    if WEIGHTS not in manifest.files:
        raise PolicyInvalid(
            f"{folder}: holds graphs to run but no {WEIGHTS} to train further; start from the run it was exported from"
        )
    description: dict[str, Any] = {
        "model": manifest.model,
        "vocabulary": list(manifest.vocabulary),
        "contract_hash": manifest.contract_hash,
        "training": manifest.training,
    }
    try:
        model = Policy(ModelConfig.stored(manifest.model))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise PolicyInvalid(f"{folder}: {WEIGHTS} and {manifests.FILE_NAME} do not make a policy: {error}") from error
    return model.eval(), description


@dataclasses.dataclass(frozen=True)
class Start:
    """What `--from` gave a model."""

    policy: Policy  # as it was, with the words of the model that it was given to
    training: dict[str, Any]  # its record
    fresh_words: list[str]  # that it lacked
    fresh: frozenset[str]  # names of parameters that it lacked


def adopt(model: Policy, words: tuple[str, ...], contract_hash: str, folder: Path) -> Start:
    """Give `model` the weights and statistics of another policy.

    Ids are alphabetical, so new words move the old ones: a word's row goes where the word is now, and new words keep
    their random rows. A policy whose sentence's summary asked for the named points may go on with words that find them,
    and one without expectations with them: these parts are new. Raises ConfigInvalid or PolicyInvalid where the two do
    not fit."""
    start, description = read_start(folder, contract_hash)
    old, new = list(description["vocabulary"]), list(words)
    lost = sorted(set(old) - set(new))
    if description["contract_hash"] != contract_hash or lost:
        raise ConfigInvalid(
            f"{folder / DESCRIPTION}: made for another contract or vocabulary "
            f"(words that are gone: {', '.join(lost) or 'none'}); leave --from out"
        )
    # Sampling and where the pretrained part came from may differ: the weights are of the same shape.
    ours = model.config
    same = {"vocabulary": len(new), "steps": ours.steps, "vlm": ours.vlm, "names": ours.names}
    changed = {}
    if ours.backbone == "nano":
        changed = {"naming": "words"} if ours.naming == "words" else {}
        changed |= {"expect": True} if ours.expect else {}
    differs = [
        f"{field.name} is {there!r}, wanted {here!r}"
        for field in dataclasses.fields(model.config)
        if (there := getattr(dataclasses.replace(start.config, **same, **changed), field.name))
        != (here := getattr(ours, field.name))
    ]
    if differs:
        raise ConfigInvalid(
            f"{folder / DESCRIPTION}: made with another `model` section ({'; '.join(differs)}); "
            "write the same one, or leave --from out"
        )
    weights, rows = start.state_dict(), [new.index(word) for word in old]
    key = f"backbone.{model.backbone.word_rows}"
    per_word = model.state_dict()[key].clone()  # (vocabulary, ...)
    per_word[rows] = weights[key]
    weights[key] = per_word
    names = tuple(sorted(rows[word] for word in start.config.names))
    before = Policy(dataclasses.replace(start.config, **same | {"names": names})).eval()
    before.load_state_dict(weights)
    if ours.naming != start.config.naming:
        _without_asking(weights, NAMED * ours.stem[2])
    fresh = frozenset(name for name, _ in model.named_parameters() if name not in weights)
    model.load_state_dict(model.state_dict() | weights)
    return Start(before, description["training"], sorted(set(new) - set(old)), fresh)


def _without_asking(weights: dict[str, Tensor], rows: int) -> None:
    """Leave the first `rows` of the summary's questions out, which asked for the named points."""
    for name in [name for name in weights if ".ask." in name]:
        weights[name] = weights[name][rows:]


def adopt_senses(
    model: Policy, words: tuple[str, ...], contract_hash: str, folder: Path, transformer: bool = False
) -> None:
    """Give a nano `model` the text encoder and the cameras of another, and its `transformer` if asked; the rest stays.

    For comparisons: finding what is named takes most of a training run, and is not what they are about. Raises
    ConfigInvalid or PolicyInvalid where the two do not fit."""
    start, description = read_start(folder, contract_hash)
    if description["contract_hash"] != contract_hash or list(description["vocabulary"]) != list(words):
        raise ConfigInvalid(f"{folder / DESCRIPTION}: made for another contract or vocabulary")
    ours, theirs = model.state_dict(), start.state_dict()
    taken = "backbone." if transformer else SENSES
    senses = {name: value for name, value in theirs.items() if name.startswith(taken)}
    if unlike := sorted(
        name
        for name in ours
        if name.startswith(taken) and (name not in senses or senses[name].shape != ours[name].shape)
    ):
        raise ConfigInvalid(f"{folder / DESCRIPTION}: backbone of other sizes ({unlike[0]}, ...)")
    model.load_state_dict(ours | {name: senses[name] for name in ours if name in senses})
