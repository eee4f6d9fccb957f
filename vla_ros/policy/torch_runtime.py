"""Runs a training run's weights directly in PyTorch, behind the protocol of the exported graph: to evaluate first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Refused
from vla_ros.policy import manifest as manifests
from vla_ros.policy.language import Language, Lexicon, Phrases
from vla_ros.policy.manifest import WEIGHTS, Manifest, PolicyInvalid
from vla_ros.policy.model import ModelConfig, Policy
from vla_ros.policy.runtime import PolicyRuntime
from vla_ros.policy.tokenizer import split

DESCRIPTION = "policy.json"


def lexicon(texts: Sequence[str] = ()) -> Lexicon:
    """From the task families that the sentences were drawn from, and sentences that were recorded."""
    from vla_ros.sim import tasks

    families = tuple(
        Phrases(name=name, templates=form.trained)
        for family in tasks.FAMILIES.values()
        for name, form in family.forms.items()
    )
    known = Lexicon(families=families, slots=tasks.SLOTS)
    language = Language(known, max((len(split(text)) for text in texts), default=1))
    recorded = tuple(text for text in texts if not _understood(language, text))
    more = (Phrases(name="recorded", templates=recorded),) if recorded else ()
    return Lexicon(families=(*families, *more), slots=tasks.SLOTS)


def _understood(language: Language, text: str) -> bool:
    """Whether a sentence is in the words of the families already; a new verb for known things is not."""
    try:
        language.judge(text)
    except Refused:
        return False
    return True


def read_run(folder: Path) -> tuple[Policy, dict[str, Any]]:
    """Model with averaged weights, in eval mode, and the run's description."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        sizes = ModelConfig.stored(description["model"])
        if sizes.vlm:
            sizes = dataclasses.replace(sizes, vlm=str(folder / "vlm"))  # the run carries what builds it
        model = Policy(sizes)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise PolicyInvalid(f"{folder}: {DESCRIPTION} and {WEIGHTS} do not make a policy: {error}") from error
    return model.eval(), description


def describe(
    model: Policy,
    description: dict[str, Any],
    contract: Contract,
    name: str,
    files: dict[str, manifests.FileEntry],
    graph: str,
    self_test: str,
    **more: Any,
) -> Manifest:
    """The manifest of a run's policy."""
    c = model.config
    return Manifest(
        format=manifests.FORMAT,
        name=name,
        contract_name=contract.name,
        contract_hash=description["contract_hash"],
        graph=graph,
        self_test=self_test,
        files=files,
        cameras=tuple(camera.name for camera in contract.cameras),
        image_px=c.image_px,
        state_dim=c.state_dim,
        rows=c.rows,
        cols=c.cols,
        action_space=c.action_space,
        dt_s=contract.action.dt_s,
        prefix_max=c.prefix_max,
        confidence_temperature=description.get("confidence_temperature", 1.0),
        action_mean=model.action_mean.tolist(),
        action_std=model.action_std.tolist(),
        vocabulary=tuple(description["vocabulary"]),
        text_tokens=c.text_tokens,
        lexicon=lexicon(description["data"].get("texts", ())),
        model=description["model"],
        data=description["data"],
        training=description["training"],
        **{"precision": {}, "metrics": {"validation": description["validation"]}} | more,
    )


class TorchGraph:
    """`bf16`: matrix products in bfloat16 (autocast), everything that torch holds to be delicate in fp32."""

    def __init__(self, model: Policy, bf16: bool = False) -> None:
        self._model, self._bf16 = model, bf16

    @torch.inference_mode()
    def __call__(
        self,
        images: NDArray[np.uint8],
        ids: NDArray[np.int64],
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        prefix: NDArray[np.float32],
        prefix_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], float, float]:
        tensors = [torch.from_numpy(a) for a in (images, ids, state, noise, prefix, prefix_rows)]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            chunk, done, sure = self._model.forward(*tensors)
        return chunk.float().numpy(), float(done), float(sure)


def load_run(path: str | Path, contract: Contract, threads: int = 1, precision: str = "fp32") -> PolicyRuntime:
    """A run folder, or one of its snapshots, as a policy in fp32 or bf16. Raises PolicyInvalid."""
    if precision not in ("fp32", "bf16"):
        raise PolicyInvalid(f"precision is {precision!r}, allowed: fp32, bf16")
    folder = Path(path)
    torch.set_num_threads(threads)
    model, description = read_run(folder)
    if description["contract_hash"] != contract.hash:
        raise PolicyInvalid(
            f"{folder}: trained for contract {description['contract_hash'][:12]}, loaded is {contract.hash[:12]}"
        )
    weights = manifests.entry(folder / WEIGHTS)
    manifest = describe(model, description, contract, "run", {WEIGHTS: weights}, WEIGHTS, WEIGHTS)
    graph = TorchGraph(model, bf16=precision == "bf16")
    return PolicyRuntime(manifest, contract, graph, f"{precision} (PyTorch)", weights.sha256)
