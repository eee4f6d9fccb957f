"""One optimizer step after another: gradients over threads and processes, averaged weights, files to resume from."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_ros.policy import adapters
from vla_ros.policy.model import ModelConfig, Policy
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import DESCRIPTION, WEIGHTS, read_run
from vla_ros.training.checkpoint import (
    adopt,
    adopt_senses,
    find_checkpoint,
    optimizer_tensors,
    replace_folder,
    restore_optimizer,
)
from vla_ros.training.config import ConfigInvalid, TrainConfig, learning_rate_factor
from vla_ros.training.dataset import Batch, Dataset
from vla_ros.training.losses import losses, pixels, point_loss
from vla_ros.training.precision import has_bfloat16
from vla_ros.training.processes import Processes, join

FIT_FASTER = 10  # times the learning rate, for a few new parameters among settled ones; a choice


def share_parameters(model: Policy) -> Policy:
    """A copy that uses the very same parameters, with buffers of its own."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, memo)


class Trainer:
    """A model in training. One thread calls it.

    `words`: every word of every sentence. `start`: what `--from` names; a run that has a checkpoint does not need it.
    Raises ConfigInvalid, PolicyInvalid or DatasetInvalid where things do not fit together."""

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        words: set[str],
        out: Path,
        contract_hash: str,
        start: Path | None = None,
        processes: Processes | None = None,
        senses: Path | None = None,
    ) -> None:
        self.config, self.data, self.out, self.contract_hash = config, data, out, contract_hash
        self.processes = processes or join(config.device)
        device = self.processes.device
        torch.manual_seed(config.seed)
        shard = data.shards[0]
        self.tokenizer = Tokenizer.of(words, config.model.text_tokens)
        sizes = dataclasses.replace(
            config.model,
            vocabulary=len(self.tokenizer.words),
            state_dim=shard.features.shape[1],
            cols=shard.chunk.shape[2],
            cameras=shard.images.shape[1],
            image_px=shard.images.shape[2],
            names=self._ids(config.names),
        )
        if shard.chunk.shape[1] != sizes.rows:
            raise ConfigInvalid(f"model.rows = {sizes.rows}, but the data's chunks have {shard.chunk.shape[1]}")
        self.model = Policy(sizes)
        statistics = data.statistics()
        for name, value in zip(("state_mean", "state_std", "action_mean", "action_std"), statistics, strict=True):
            getattr(self.model, name).copy_(torch.from_numpy(value))
        if sizes.backbone == "smolvlm":
            self.model.backbone.learn_words(self.tokenizer.words)
            if start is None and find_checkpoint(out) is None:
                self.model.backbone.load_pretrained()
        self.started_from: dict[str, Any] | None = None  # training record of the run given by --from
        self.start: Policy | None = None  # what that run made, with this run's words
        self.fresh: frozenset[str] = frozenset()  # names of parameters that it lacked
        fresh_words: list[str] = []
        if start is not None:
            given = adopt(self.model, self.tokenizer.words, contract_hash, start)
            self.started_from, self.start, self.fresh = given.training, given.policy, given.fresh
            fresh_words = given.fresh_words
            if self.fresh and not config.point_steps:
                raise ConfigInvalid(
                    f"model.naming, model.expect: {start} does not point this way yet; give point_steps (800 were "
                    "enough) to learn it first, or the same settings"
                )
            if not self.fresh:
                self.config = config = config.model_copy(update={"point_steps": 0})
        if senses is not None:
            adopt_senses(self.model, self.tokenizer.words, contract_hash, senses, transformer=config.tune != "full")
        self._choose_what_learns(fresh_words, taught=start is not None or senses is not None)
        self.model.to(device)
        self.model.backbone.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        # Data parallel over threads of one operator thread each: OpenMP's barriers cost a factor of three as soon as
        # anything else runs on the machine. Replicas share the parameters and keep their own batch norm statistics.
        threads = config.threads if device.type == "cpu" else 1
        torch.set_num_threads(1)
        self.replicas = [self.model] + [share_parameters(self.model) for _ in range(threads - 1)]
        self.pool = ThreadPoolExecutor(
            threads, thread_name_prefix="replica", initializer=torch.set_num_threads, initargs=(1,)
        )
        learning = self.learning(self.model)
        decayed = [p for p in learning if p.ndim >= 2]
        rest = [p for p in learning if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.bfloat16 = config.mixed_precision == "auto" and has_bfloat16(device)
        self.before: Policy | None = None  # answers old samples, see `keep_answers_of`
        self.step, self.elapsed_s = 0, 0.0
        self.validation: dict[str, float] = {}
        self.stop_signal = 0

    def _choose_what_learns(self, fresh_words: list[str], taught: bool) -> None:
        """Freeze the backbone's learned part (`tune: head`) or put adapters into it (`lora`)."""
        tune, backbone = self.config.tune, self.model.backbone
        if tune == "full":
            return
        if self.config.model.backbone == "nano" and not taught and find_checkpoint(self.out) is None:
            raise ConfigInvalid(
                f"tune = {tune}: a nano backbone that nothing has taught yet; give --from, or tune: full"
            )
        if tune == "head":
            if fresh_words and self.config.model.backbone == "nano":
                raise ConfigInvalid(
                    f"tune = head: the backbone never saw the words {', '.join(fresh_words)}; use lora or full"
                )
            backbone.learned.requires_grad_(False)
        else:
            adapters.add(backbone.learned, self.config.lora_rank)
            if self.config.model.backbone == "nano":
                backbone.text.words.requires_grad_(True)  # new words need rows of their own

    def _ids(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """Of the words that only name, in the vocabulary."""
        if unknown := sorted(set(words) - set(self.tokenizer.words)):
            raise ConfigInvalid(f"names: {', '.join(unknown)}: no sentence has these words; leave them out")
        return tuple(sorted(self.tokenizer.words.index(word) for word in set(words)))

    def keep_answers_of(self, folder: Path) -> None:
        """Old samples teach, as far as `config.keep` says, what the policy in `folder` answers.

        Raises PolicyInvalid."""
        policy, _ = read_run(folder)
        self.before = policy.requires_grad_(False).to(self.processes.device)
        self.before.backbone.to(memory_format=torch.channels_last)

    @staticmethod
    def learning(model: Policy) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in model.parameters() if p.requires_grad]

    @property
    def fitting(self) -> bool:
        """Whether what the start lacked learns to point by itself, before anything else goes on."""
        return bool(self.fresh) and self.step < self.config.point_steps

    def learning_now(self, model: Policy) -> list[torch.nn.Parameter]:
        if not self.fitting:
            return self.learning(model)
        return [p for name, p in model.named_parameters() if p.requires_grad and name in self.fresh]

    # ------------------------------------------------------------------------------------------ one step

    def train_step(self, batch: Batch, progress: float) -> dict[str, float] | None:
        """One optimizer step; None if the loss was not finite (the step is left out)."""
        config = self.config
        factor = learning_rate_factor(config, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor * (FIT_FASTER if self.fitting else 1)
        count = len(self.replicas) * self.processes.count
        if len(batch.images) < count:
            raise ConfigInvalid(f"batch = {config.batch}: {len(batch.images)} pictures cannot be shared by {count}")
        edges = [len(batch.images) * k // count for k in range(count + 1)]
        first = len(self.replicas) * self.processes.index
        jobs = [
            self.pool.submit(self._gradients, i, first + i, batch.part(edges[first + i], edges[first + i + 1]))
            for i in range(len(self.replicas))
        ]
        results = [job.result() for job in jobs]
        names = list(results[0][1])
        figures = torch.tensor([float(np.mean([r[1][k] for r in results])) for k in names])
        gradients = [torch.stack([r[0][i] for r in results]).mean(0) for i in range(len(results[0][0]))]
        *gradients, figures = self.processes.mean([*gradients, figures.to(self.processes.device)])
        parts = dict(zip(names, figures.tolist(), strict=True))
        if not np.isfinite(parts["loss"]):
            return None
        learning = self.learning_now(self.model)
        self.optimizer.zero_grad()
        for p, gradient in zip(learning, gradients, strict=True):
            # In the parameter's own memory layout: the fused optimizer walks raw memory and would mix up taps.
            p.grad = torch.empty_like(p).copy_(gradient)
        norm = torch.nn.utils.clip_grad_norm_(learning, config.clip_norm)
        self.optimizer.step()
        self._agree_on_statistics()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            ours, theirs = self.average.state_dict(), self.model.state_dict()
            pairs = [(ours[k], theirs[k]) for k in ours if ours[k].is_floating_point()]
            torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1.0 - decay)
        return parts | {"norm": float(norm), "lr": config.learning_rate * factor}

    def _gradients(self, index: int, number: int, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        """Runs in a thread of the pool: gradients of one share of the batch, and the parts of its loss.

        `number` counts the shares over all processes, so that the noise does not depend on who computes which."""
        config, model, device = self.config, self.replicas[index], self.processes.device
        model.train()
        if config.tune != "full" or self.before is not None or self.fitting:
            model.backbone.learned.eval()  # running statistics of what is frozen or kept stay as they were learned
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + self.step) * 4096 + number)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            if self.step < config.point_steps:
                ids, state, picture, truth = (
                    torch.from_numpy(a).to(device) for a in (batch.ids, batch.state, batch.picture, batch.point)
                )
                point = point_loss(model.point(pixels(batch, device), ids, state, picture), truth)
                total, parts = point, {"point": float(point.detach())}
            else:
                total, parts = losses(model, config, batch, generator, self.before)
        gradients = torch.autograd.grad(total, self.learning_now(model), allow_unused=True, materialize_grads=True)
        return gradients, {"loss": float(total.detach()), **parts}

    @torch.no_grad()
    def _agree_on_statistics(self) -> None:
        """Every replica of every process goes on with the mean of all running batch norm statistics."""
        if len(self.replicas) * self.processes.count == 1:
            return
        shared = [
            buffers
            for buffers in zip(*(replica.buffers() for replica in self.replicas), strict=True)
            if buffers[0].is_floating_point()
        ]
        means = self.processes.mean([torch.stack(buffers).mean(0) for buffers in shared])
        for buffers, mean in zip(shared, means, strict=True):
            for buffer in buffers:
                buffer.copy_(mean)

    def agree(self) -> bool:
        """All processes take the same time as used up; True if any of them was told to stop."""
        own = torch.tensor([self.elapsed_s, float(self.stop_signal != 0)], device=self.processes.device)
        if self.processes.count > 1:
            elapsed, stop = self.processes.mean([own])[0].tolist()
            self.elapsed_s = elapsed
            return stop > 0
        return self.stop_signal != 0

    # ------------------------------------------------------------------------------------------ files

    def description(self, policy: Policy) -> dict[str, Any]:
        """All that somebody needs beside the policy's weights."""
        return {
            "format": 1,
            "model": dataclasses.asdict(policy.config),
            "vocabulary": list(self.tokenizer.words),
            "contract_hash": self.contract_hash,
            "data": {k: self.data.meta[k] for k in ("families", "colours", "shapes")}
            | {
                "sources": [{k: meta[k] for k in ("seed", "git_revision")} for meta in self.data.sources],
                "frames": sum(len(s.features) for s in self.data.shards),
                "labels": len(self.data.train) + len(self.data.validation),
                "skipped_shards": self.data.skipped,
                "texts": self.data.texts,
            },
            "training": {
                "step": self.step,
                "samples": self.step * self.config.batch,
                "seconds": round(self.elapsed_s, 1),
                "config": self.config.model_dump(mode="json"),
                "git_revision": git_revision(),
                "torch": torch.__version__,
                "threads": self.config.threads,
                "processes": self.processes.count,
                "bfloat16": self.bfloat16,
                "started_from": self.started_from,
            },
            "validation": self.validation,
        }

    def save_policy(self, folder: Path, policy: Policy | None = None) -> None:
        """Averaged weights, adapters merged, and the description; or another policy of the same words and training."""
        folder.mkdir(parents=True, exist_ok=True)
        if policy is None:
            policy = self.average
            if self.config.tune == "lora":
                policy = copy.deepcopy(policy)
                adapters.merge(policy.backbone.learned)
        weights = {k: v.cpu().contiguous() for k, v in policy.state_dict().items()}
        if policy.config.backbone == "smolvlm":
            policy.backbone.save_sources(folder)
        save_file(weights, folder / f".{WEIGHTS}")
        (folder / f".{DESCRIPTION}").write_text(json.dumps(self.description(policy), indent=1))
        os.replace(folder / f".{WEIGHTS}", folder / WEIGHTS)
        os.replace(folder / f".{DESCRIPTION}", folder / DESCRIPTION)

    def save(self) -> None:
        """Checkpoint and policy. Each is written aside, then put in place."""
        new = self.out / "checkpoint.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, model in (("weights", self.model), ("average", self.average)):
            save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, new / f"{name}.safetensors")
        save_file(optimizer_tensors(self.model, self.optimizer), new / "optimizer.safetensors")
        facts = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "config": self.config.model_dump(mode="json"),
            "contract_hash": self.contract_hash,
            "words": self.tokenizer.words,
            "validation": self.validation,
            "started_from": self.started_from,
            "fresh": sorted(self.fresh),
        }
        (new / "state.json").write_text(json.dumps(facts))
        replace_folder(new, self.out / "checkpoint")
        self.save_policy(self.out)

    def resume(self) -> bool:
        """Go on where the run folder's checkpoint ended; False where it has none. Bit for bit, on the CPU."""
        folder = find_checkpoint(self.out)
        if folder is None:
            return False
        try:
            facts = json.loads((folder / "state.json").read_text())
            stored, tune = ModelConfig.stored(facts["config"]["model"]), facts["config"].get("tune", "full")
            words, contract_hash = facts["words"], facts["contract_hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigInvalid(f"{folder / 'state.json'}: not readable ({error}); give a fresh --out") from error
        if contract_hash != self.contract_hash or words != list(self.tokenizer.words):
            raise ConfigInvalid(f"{folder}: made for another contract or vocabulary; give a fresh --out")
        if stored != self.config.model or tune != self.config.tune:
            raise ConfigInvalid(f"{folder}: made with another `model` section or `tune`; give a fresh --out")
        try:
            self.model.load_state_dict(load_file(folder / "weights.safetensors"))
            self.average.load_state_dict(load_file(folder / "average.safetensors"))
            restore_optimizer(self.model, self.optimizer, load_file(folder / "optimizer.safetensors"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigInvalid(f"{folder}: damaged or of another version ({error}); give a fresh --out") from error
        for replica in self.replicas[1:]:
            for ours, first in zip(replica.buffers(), self.model.buffers(), strict=True):
                ours.copy_(first)
        self.step, self.elapsed_s, self.validation = facts["step"], facts["elapsed_s"], facts["validation"]
        self.started_from = facts["started_from"]
        self.fresh = frozenset(facts.get("fresh", ()))
        if self.started_from is not None and not self.fresh:
            self.config = self.config.model_copy(update={"point_steps": 0})
        return True


def git_revision() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return found.stdout.strip() or "unknown"
