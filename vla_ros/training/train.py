"""Train a policy on demonstrations. Resumable at any moment, also after SIGTERM: run the same command again.

    python -m vla_ros.training.train config/train/nano.yaml --data DIR --out DIR [--from RUN] [--max-minutes 90]

What it leaves in --out:
    policy.json, policy.safetensors   averaged weights (EMA) and everything needed to use or export them
    snapshots/<step>/                 the same, every `snapshot_every` steps: the closed loop chooses, never the loss
    checkpoint/                       raw weights, optimizer and counters, to resume
    log.jsonl                         one line per report and per validation
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.model import ModelConfig, Policy
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import read_run
from vla_ros.training.dataset import Augment, Batch, Dataset, Loader
from vla_ros.training.objectives import OBJECTIVES

SURE_WITHIN_M = (
    0.02  # confidence = probability that the named object is where the policy thinks, to this distance; a choice
)
WHERE_SCALE_M = 0.1  # unit of the where outputs inside the model
REPORT_EVERY = 20
BAD_STEPS_MAX = 5  # consecutive non-finite losses until the run gives up


class ConfigInvalid(VlaError):
    """A training file with at least one wrong entry; lists all of them."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(Strict):
    action: float = Field(1.0, ge=0)
    where: float = Field(0.5, ge=0)
    point: float = Field(1.0, ge=0)
    done: float = Field(0.1, ge=0)
    sure: float = Field(0.05, ge=0)


class TrainConfig(Strict):
    robot: str = "panda"
    seed: int = 1
    steps: int = Field(3000, ge=1)
    batch: int = Field(128, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    point_steps: int = Field(0, ge=0)
    warmup_steps: int = Field(200, ge=1)
    decay_fraction: float = Field(0.3, ge=0, le=1)
    ema: float = Field(0.998, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    draws: int = Field(4, ge=1)
    prefix_probability: float = Field(0.5, ge=0, le=1)
    done_share: float = Field(0.0, ge=0, le=0.5)
    weights: Weights = Weights()
    augment: Augment = Augment()
    validation_fraction: float = Field(0.03, gt=0, lt=0.5)
    validation_every: int = Field(250, ge=1)
    validation_samples: int = Field(512, ge=1)
    save_every: int = Field(250, ge=1)
    snapshot_every: int = Field(500, ge=1)
    threads: int = Field(2, ge=1)
    bfloat16: bool = False
    model: ModelConfig = ModelConfig()


def load_config(path: Path) -> TrainConfig:
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"{path}: not readable: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc'])}: {e['msg']} (is {e['input']!r})" for e in error.errors()]
        raise ConfigInvalid(f"{path}: {len(lines)} wrong entries\n" + "\n".join(lines)) from error


def keep_memory() -> None:
    """Ask glibc to keep freed memory: each step frees and takes the same hundreds of MB, and page faults are dear."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap, too
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Warm-up (once per stage), constant, linear decay over the last part of the run. `progress` 0..1."""
    since = step if step < config.point_steps else step - config.point_steps
    warm = min(1.0, (since + 1) / config.warmup_steps)
    tail = (1.0 - progress) / config.decay_fraction if config.decay_fraction > 0 else 1.0
    return warm * max(0.0, min(1.0, tail))


def pixels(batch: Batch) -> Tensor:
    """uint8 pictures and their augmentation -> (B, K, 3, P, P) about -1..1, channel last in memory."""
    images = torch.from_numpy(batch.images)  # (B, K, P, P, 3)
    gain, offset = torch.from_numpy(batch.gain), torch.from_numpy(batch.offset)  # (B, K, 3)
    x = images * (gain / 127.5)[:, :, None, None] + (offset - gain)[:, :, None, None]
    return x.permute(0, 1, 4, 2, 3)  # (B, K, 3, P, P)


def point_loss(named: Tensor, point: Tensor) -> Tensor:
    """Cross-entropy of the NAMED keypoints: named (B, K, 2, cells) logits; point (B, K, 2, 3) u, v in 0..1, visible.

    Telling cells apart teaches a small model which object the words mean sooner than regressing a position does
    (heat maps as in BridgeVLA, 2506.07961); the truth is spread over the four nearest cells."""
    side = math.isqrt(named.shape[-1])
    place = (point[..., :2] * side - 0.5).clamp(0, side - 1)  # (B, K, 2, 2): x right, y down, in cells
    low = place.floor().clamp(max=side - 2)
    share = place - low
    logs = named.log_softmax(-1)
    loss = torch.zeros_like(point[..., 2])  # (B, K, 2)
    for dx in (0, 1):
        for dy in (0, 1):
            cell = ((low[..., 1] + dy) * side + low[..., 0] + dx).long()  # (B, K, 2)
            weight = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            loss = loss - weight * logs.gather(-1, cell[..., None])[..., 0]
    seen = point[..., 2].sum((0, 1)).clamp(min=1.0)  # (2,) object, destination
    return ((loss * point[..., 2]).sum((0, 1)) / seen).sum()


def losses(
    model: Policy, config: TrainConfig, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Total loss and its parts."""
    chunk = model.normalise(torch.from_numpy(batch.chunk))  # (B, R, A)
    aux = torch.from_numpy(batch.aux)  # (B, 7)
    memory = model.observe(
        pixels(batch), torch.from_numpy(batch.ids), torch.from_numpy(batch.state), torch.from_numpy(batch.picture)
    )
    objective = OBJECTIVES[model.config.objective](model.config)
    action = objective.loss(model.head, chunk, memory, generator, config.draws, config.prefix_probability).mean()
    pooled = memory.pooled.float()
    found = model.where_object(pooled)  # (B, 3), in WHERE_SCALE_M
    where_object = F.smooth_l1_loss(found, aux[:, :3] / WHERE_SCALE_M, beta=0.3)
    valid = aux[:, 6]  # (B,)
    miss = F.smooth_l1_loss(model.where_target(pooled), aux[:, 3:6] / WHERE_SCALE_M, beta=0.3, reduction="none").mean(1)
    where_target = (miss * valid).sum() / valid.sum().clamp(min=1.0)
    done = F.binary_cross_entropy_with_logits(model.done(pooled)[:, 0], torch.from_numpy(batch.done))
    distance = (found.detach() * WHERE_SCALE_M - aux[:, :3]).norm(dim=1)  # (B,) m
    sure = F.binary_cross_entropy_with_logits(model.sure(pooled.detach())[:, 0], (distance < SURE_WITHIN_M).float())
    point = point_loss(memory.named, torch.from_numpy(batch.point))
    w = config.weights
    total = (
        w.action * action + w.where * (where_object + where_target) + w.point * point + w.done * done + w.sure * sure
    )
    parts = {
        "action": action,
        "where_object": where_object,
        "where_target": where_target,
        "point": point,
        "done": done,
        "sure": sure,
        "where_cm": distance.median() * 100,
    }
    return total, {k: float(v.detach()) for k, v in parts.items()}


@torch.no_grad()
def validate(model: Policy, config: TrainConfig, data: Dataset, tokenizer: Tokenizer) -> dict[str, float]:
    """Open-loop figures of the averaged weights. They tell whether training works, not whether the arm does."""
    model.eval()
    rng = np.random.default_rng((config.seed, 7))
    picks = data.validation[rng.permutation(len(data.validation))[: config.validation_samples]]
    sums: dict[str, list[float]] = {}
    for i in range(0, len(picks), 128):
        batch = data.batch(picks[i : i + 128], rng, tokenizer, None)
        generator = torch.Generator().manual_seed(i)
        part = losses(model, config, batch, generator)[1]
        noise = torch.randn(len(batch.chunk), model.config.rows, model.config.cols, generator=generator)
        chunk, done, sure = model(
            torch.from_numpy(batch.images[batch.picture]),
            torch.from_numpy(batch.ids),
            torch.from_numpy(batch.state),
            noise,
        )
        truth = torch.from_numpy(batch.chunk)
        off = (chunk[..., :3] - truth[..., :3]).norm(dim=-1) * 1000  # (B, R) mm
        is_done = batch.done > 0.5
        part |= {
            "row4_mm": float(off[:, min(3, off.shape[1] - 1)].median()),
            "row_last_mm": float(off[:, -1].median()),
            "grip_wrong": float(((chunk[..., -1] > 0.5) != (truth[..., -1] > 0.5)).float().mean()),
            "sure_mean": float(sure.mean()),
            "done_false": float((done.numpy() > 0.9)[~is_done].mean()) if (~is_done).any() else 0.0,
        }
        if is_done.any():
            part["done_recall"] = float((done.numpy() > 0.9)[is_done].mean())
        for key, value in part.items():
            sums.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in sums.items()}


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


def share_parameters(model: Policy) -> Policy:
    """A copy that uses the very same parameters, with buffers of its own."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, memo)


class Trainer:
    def __init__(self, config: TrainConfig, data: Dataset, words: set[str], out: Path, contract_hash: str) -> None:
        self.config, self.data, self.out, self.contract_hash = config, data, out, contract_hash
        torch.manual_seed(config.seed)
        shard = data.shards[0]
        self.tokenizer = Tokenizer.of(words, config.model.text_tokens)
        sizes = dataclasses.replace(
            config.model,
            vocabulary=len(self.tokenizer.words),
            state_dim=shard.features.shape[1],
            rows=shard.chunk.shape[1],
            cols=shard.chunk.shape[2],
            cameras=shard.images.shape[1],
            image_px=shard.images.shape[2],
        )
        self.model = Policy(sizes)
        statistics = data.statistics()
        for name, value in zip(("state_mean", "state_std", "action_mean", "action_std"), statistics, strict=True):
            getattr(self.model, name).copy_(torch.from_numpy(value))
        self.average = Policy(sizes)
        self.average.load_state_dict(self.model.state_dict())
        for model in (self.model, self.average):
            model.backbone.cameras.to(memory_format=torch.channels_last)
        # Data parallel over threads of one operator thread each: OpenMP's barriers cost a factor of three as soon as
        # anything else runs on the machine. Replicas share the parameters and keep their own batch norm statistics.
        torch.set_num_threads(1)
        self.replicas = [self.model] + [share_parameters(self.model) for _ in range(config.threads - 1)]
        self.pool = ThreadPoolExecutor(
            config.threads, thread_name_prefix="replica", initializer=torch.set_num_threads, initargs=(1,)
        )
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.step, self.elapsed_s = 0, 0.0
        self.validation: dict[str, float] = {}
        self.stop_signal = 0
        self.started_from: dict[str, Any] | None = None  # training record of the run given by --from

    # ------------------------------------------------------------------------------------------ one step

    def train_step(self, batch: Batch, progress: float) -> dict[str, float] | None:
        """One optimizer step; None if the loss was not finite (the step is left out)."""
        config = self.config
        factor = learning_rate_factor(config, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        share = -(-len(batch.images) // len(self.replicas))  # pictures
        jobs = [
            self.pool.submit(self._gradients, i, batch.part(i * share, (i + 1) * share))
            for i in range(len(self.replicas))
        ]
        results = [job.result() for job in jobs]
        parts = {k: float(np.mean([r[1][k] for r in results])) for k in results[0][1]}
        if not np.isfinite(parts["loss"]):
            return None
        for i, p in enumerate(self.model.parameters()):
            # In the parameter's own memory layout: the fused optimizer walks raw memory and would mix up taps.
            p.grad = torch.empty_like(p).copy_(torch.stack([r[0][i] for r in results]).mean(0))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self._agree_on_statistics()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            ours, theirs = self.average.state_dict(), self.model.state_dict()
            pairs = [(ours[k], theirs[k]) for k in ours if ours[k].is_floating_point()]
            torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1.0 - decay)
        return parts | {"norm": float(norm), "lr": config.learning_rate * factor}

    def _gradients(self, index: int, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        """Runs in a thread of the pool: gradients of one share of the batch, and the parts of its loss."""
        config, model = self.config, self.replicas[index]
        model.train()
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + self.step) * 16 + index)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            if self.step < config.point_steps:
                point = point_loss(
                    model.backbone.point(pixels(batch), torch.from_numpy(batch.ids), torch.from_numpy(batch.picture)),
                    torch.from_numpy(batch.point),
                )
                total, parts = point, {"point": float(point.detach())}
            else:
                total, parts = losses(model, config, batch, generator)
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return gradients, {"loss": float(total.detach()), **parts}

    @torch.no_grad()
    def _agree_on_statistics(self) -> None:
        """Every replica goes on with the mean of all running batch norm statistics."""
        for buffers in zip(*(replica.buffers() for replica in self.replicas), strict=True):
            if len(buffers) > 1 and buffers[0].is_floating_point():
                mean = torch.stack(buffers).mean(0)
                for buffer in buffers:
                    buffer.copy_(mean)

    # ------------------------------------------------------------------------------------------ files

    def description(self) -> dict[str, Any]:
        """All that somebody needs beside the weights."""
        return {
            "format": 1,
            "model": dataclasses.asdict(self.model.config),
            "vocabulary": list(self.tokenizer.words),
            "contract_hash": self.contract_hash,
            "data": {k: self.data.meta[k] for k in ("families", "colours", "shapes")}
            | {
                "sources": [{k: meta[k] for k in ("seed", "git_revision")} for meta in self.data.sources],
                "frames": sum(len(s.features) for s in self.data.shards),
                "labels": len(self.data.train) + len(self.data.validation),
                "skipped_shards": self.data.skipped,
            },
            "training": {
                "step": self.step,
                "samples": self.step * self.config.batch,
                "seconds": round(self.elapsed_s, 1),
                "config": self.config.model_dump(),
                "git_revision": git_revision(),
                "torch": torch.__version__,
                "threads": self.config.threads,
                "started_from": self.started_from,
            },
            "validation": self.validation,
        }

    def save_policy(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in self.average.state_dict().items()}
        save_file(weights, folder / ".policy.safetensors")
        (folder / ".policy.json").write_text(json.dumps(self.description(), indent=1))
        os.replace(folder / ".policy.safetensors", folder / "policy.safetensors")
        os.replace(folder / ".policy.json", folder / "policy.json")

    def save(self) -> None:
        """Checkpoint and policy. Each is written aside, then put in place."""
        new = self.out / "checkpoint.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, new / "weights.safetensors")
        save_file({k: v.contiguous() for k, v in self.average.state_dict().items()}, new / "average.safetensors")
        torch.save(self.optimizer.state_dict(), new / "optimizer.pt")
        facts = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "config": self.config.model_dump(mode="json"),
            "contract_hash": self.contract_hash,
            "words": self.tokenizer.words,
            "validation": self.validation,
            "started_from": self.started_from,
        }
        (new / "state.json").write_text(json.dumps(facts))
        replace_folder(new, self.out / "checkpoint")
        self.save_policy(self.out)

    def start_from(self, folder: Path) -> None:
        """Begin with the averaged weights and the statistics of another run or snapshot, not with random ones.

        Words that it never saw keep their random embeddings: new tasks bring new words."""
        model, description = read_run(folder)
        old, new = list(description["vocabulary"]), list(self.tokenizer.words)
        lost = sorted(set(old) - set(new))
        if description["contract_hash"] != self.contract_hash or lost:
            raise ConfigInvalid(
                f"{folder}: made for another contract or vocabulary (words that are gone: {', '.join(lost) or 'none'});"
                " leave --from out"
            )
        if dataclasses.replace(model.config, vocabulary=len(new)) != self.model.config:
            raise ConfigInvalid(f"{folder}: made with another `model` section; leave --from out")
        weights, rows = model.state_dict(), [new.index(word) for word in old]
        words = self.model.backbone.text.words.weight.detach().clone()  # (vocabulary, C)
        words[rows] = weights["backbone.text.words.weight"]
        weights["backbone.text.words.weight"] = words
        for ours in (*self.replicas, self.average):
            ours.load_state_dict(weights)
        self.config = self.config.model_copy(update={"point_steps": 0})
        self.started_from = description["training"]

    def resume(self) -> bool:
        folder = self.out / "checkpoint"
        gone = self.out / "checkpoint.gone"
        if not folder.exists() and gone.exists():  # killed between the two renames
            os.replace(gone, folder)
        if not folder.exists():
            return False
        facts = json.loads((folder / "state.json").read_text())
        if facts["contract_hash"] != self.contract_hash or facts["words"] != list(self.tokenizer.words):
            raise ConfigInvalid(f"{folder}: made for another contract or vocabulary; give a fresh --out")
        if facts["config"]["model"] != self.config.model_dump(mode="json")["model"]:
            raise ConfigInvalid(f"{folder}: made with another `model` section; give a fresh --out")
        self.model.load_state_dict(load_file(folder / "weights.safetensors"))
        self.average.load_state_dict(load_file(folder / "average.safetensors"))
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self._agree_on_statistics_from_first()
        self.step, self.elapsed_s, self.validation = facts["step"], facts["elapsed_s"], facts["validation"]
        self.started_from = facts["started_from"]
        if self.started_from is not None:
            self.config = self.config.model_copy(update={"point_steps": 0})
        return True

    def _agree_on_statistics_from_first(self) -> None:
        for replica in self.replicas[1:]:
            for ours, first in zip(replica.buffers(), self.model.buffers(), strict=True):
                ours.copy_(first)

    # ------------------------------------------------------------------------------------------ the run

    def progress(self, max_seconds: float | None) -> float:
        by_steps = self.step / self.config.steps
        return min(1.0, by_steps if max_seconds is None else max(by_steps, self.elapsed_s / max_seconds))

    def run(self, max_seconds: float | None, console: Console, stop_at: int | None = None) -> None:
        """Train until steps or time are used up, or a signal arrives; then save. `stop_at`: a test's early end."""
        c = self.config
        augment = c.augment
        last = min(c.steps, stop_at or c.steps)
        loader = Loader(
            lambda s: self.data.training_batch(s, c.batch, c.seed, self.tokenizer, augment, c.done_share),
            self.step,
            last,
        )
        self.out.mkdir(parents=True, exist_ok=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bad, window_s, window, validated = 0, 0.0, 0, self.step
        try:
            with (
                (self.out / "log.jsonl").open("a") as log,
                Progress(*columns, console=console, refresh_per_second=1) as bar,
            ):
                task = bar.add_task("training", total=1.0, completed=self.progress(max_seconds))
                while self.step < last and not self.stop_signal and (progress := self.progress(max_seconds)) < 1.0:
                    started = time.monotonic()
                    batch = loader.next()
                    assert batch is not None
                    figures = self.train_step(batch, progress)
                    if figures is None:
                        bad += 1
                        if bad >= BAD_STEPS_MAX:
                            raise VlaError(
                                f"the loss was not finite {bad} times in a row at step {self.step}; lower learning_rate"
                            )
                    else:
                        bad = 0
                    self.step += 1
                    took = time.monotonic() - started
                    self.elapsed_s += took
                    window_s, window = window_s + took, window + 1
                    if figures and self.step % REPORT_EVERY == 0:
                        line = {
                            "step": self.step,
                            "elapsed_s": round(self.elapsed_s, 1),
                            "samples_per_s": round(window * c.batch / window_s, 1),
                            **{k: round(v, 5) for k, v in figures.items()},
                        }
                        log.write(json.dumps(line) + "\n")
                        log.flush()
                        bar.update(
                            task,
                            completed=progress,
                            description=f"step {self.step}  loss {figures['loss']:.3f}  "
                            f"pointing {figures['point']:.2f}  {line['samples_per_s']:.0f}/s",
                        )
                        window_s, window = 0.0, 0
                    if self.step % c.validation_every == 0 or self.step == last:
                        validated = self.step
                        started = time.monotonic()
                        self.validation = validate(self.average, c, self.data, self.tokenizer)
                        self.elapsed_s += time.monotonic() - started
                        log.write(
                            json.dumps(
                                {"step": self.step, "validation": {k: round(v, 5) for k, v in self.validation.items()}}
                            )
                            + "\n"
                        )
                        log.flush()
                        console.print(
                            f"step {self.step}: " + "  ".join(f"{k} {v:.3g}" for k, v in self.validation.items())
                        )
                    if self.step % c.save_every == 0:
                        self.save()
                    if self.step % c.snapshot_every == 0:
                        self.save_policy(self.out / "snapshots" / f"{self.step:06d}")
        finally:
            loader.close()
        if (
            self.step != validated and not self.stop_signal and stop_at is None
        ):  # the time was up between two validations
            self.validation = validate(self.average, c, self.data, self.tokenizer)
            console.print(f"step {self.step}: " + "  ".join(f"{k} {v:.3g}" for k, v in self.validation.items()))
        self.save()


def git_revision() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an existing one is resumed")
    parser.add_argument("--from", dest="start", type=Path, help="run or snapshot whose weights a new run starts with")
    parser.add_argument(
        "--max-minutes", type=float, default=None, help="time budget; the learning rate decays towards its end"
    )
    arguments = parser.parse_args()
    keep_memory()
    from vla_ros.sim.tasks import all_words

    console = Console()
    try:
        config = load_config(arguments.config)
        contract = contracts.load(config.robot)
        data = Dataset(arguments.data, contract.hash, StateFeatures(contract).of_states, config.validation_fraction)
        for line in data.skipped:
            console.print(f"[yellow]skipped[/yellow] {line}")
        trainer = Trainer(config, data, all_words(), arguments.out, contract.hash)
        resumed = trainer.resume()
        if arguments.start and not resumed:
            trainer.start_from(arguments.start)
        size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        console.print(
            f"{size:.2f} M parameters, {len(data.train)} training labels in {len(data.shards)} shards, "
            + (f"resumed at step {trainer.step}" if resumed else f"from {arguments.start or 'nothing'}")
        )

        def on_signal(number: int, _frame: object) -> None:
            trainer.stop_signal = number

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        trainer.run(arguments.max_minutes * 60 if arguments.max_minutes else None, console)
        if trainer.stop_signal:
            console.print(
                f"stopped by signal {trainer.stop_signal}; saved at step {trainer.step}, run the same command to go on"
            )
    except VlaError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(2)


if __name__ == "__main__":
    main()
