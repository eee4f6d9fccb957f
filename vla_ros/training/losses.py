"""What a batch costs, and the open-loop figures that tell whether training works.

The action's part comes from the objective (`vla_ros.policy.objectives`). The others teach the backbone where the named
things are, whether the task is done, and how sure the policy may be. A policy that learns something new may be asked to
answer old samples as it did before, instead of as they were labelled: learning without forgetting (1606.09282)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_ros.policy.model import READ_SHARPER, Memory, Policy
from vla_ros.policy.objectives import Question
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.training.config import TrainConfig
from vla_ros.training.dataset import Batch, Dataset

SURE_WITHIN_M = 0.02  # confidence: probability that the named object is where the policy thinks, to this; a choice
WHERE_SCALE_M = 0.1  # unit of the where outputs inside the model
AIM_FINE = 0.03  # of half a picture: errors below two pixels count by their square; a choice


def pixels(batch: Batch, device: torch.device) -> Tensor:
    """uint8 pictures and their augmentation -> (B, K, 3, P, P) about -1..1, channel last in memory."""
    images = torch.from_numpy(batch.images).to(device)  # (B, K, P, P, 3)
    gain, offset = (torch.from_numpy(a).to(device) for a in (batch.gain, batch.offset))  # (B, K, 3)
    x = images * (gain / 127.5)[:, :, None, None] + (offset - gain)[:, :, None, None]
    return x.permute(0, 1, 4, 2, 3)  # (B, K, 3, P, P)


def spread(point: Tensor, cells: int) -> Tensor:
    """point (B, K, 2, 3) u, v in 0..1, visible -> (B, K, 2, cells): its share of the four nearest cells."""
    side = math.isqrt(cells)
    place = (point[..., :2] * side - 0.5).clamp(0, side - 1)  # (B, K, 2, 2): x right, y down, in cells
    low = place.floor().clamp(max=side - 2)
    share = place - low
    truth = point.new_zeros(*point.shape[:-1], cells)
    for dx in (0, 1):
        for dy in (0, 1):
            cell = ((low[..., 1] + dy) * side + low[..., 0] + dx).long()  # (B, K, 2)
            weight = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            truth.scatter_(-1, cell[..., None], weight[..., None])
    return truth


def point_loss(named: Tensor, point: Tensor, truth: Tensor | None = None) -> Tensor:
    """Cross-entropy of the NAMED keypoints: named (B, K, 2, cells) logits; point as in `spread`, which gives `truth`.

    Telling cells apart teaches a small model which object the words mean sooner than regressing a position does
    (heat maps as in BridgeVLA, 2506.07961)."""
    truth = spread(point, named.shape[-1]) if truth is None else truth
    return _where_seen(-(truth * named.log_softmax(-1)).sum(-1), point)


def aim_loss(named: Tensor, point: Tensor) -> Tensor:
    """How far off the place is that the policy reads from the NAMED keypoints, in units of half a picture.

    Cells alone leave it free to lie anywhere near: what a held object half hides was read where it can be seen, up to
    seven pixels from its middle, and things were put down 12 mm off (standard deviation). Shapes as in `point_loss`."""
    side = math.isqrt(named.shape[-1])
    axis = torch.linspace(-1, 1, side, device=named.device)
    share = (READ_SHARPER * named).softmax(-1).unflatten(-1, (side, side))  # (B, K, 2, y, x)
    read = torch.stack([share.sum(-2) @ axis, share.sum(-1) @ axis], dim=-1)  # (B, K, 2, 2): x right, y down
    truth = (point[..., :2] * side - 0.5) / (side - 1) * 2 - 1
    off = F.smooth_l1_loss(read, truth, beta=AIM_FINE, reduction="none").sum(-1)  # (B, K, 2)
    return _where_seen(off, point)


def _where_seen(loss: Tensor, point: Tensor) -> Tensor:
    """(B, K, 2) of each point -> mean over the pictures that show it, object and destination added up."""
    seen = point[..., 2].sum((0, 1)).clamp(min=1.0)  # (2,) object, destination
    return ((loss * point[..., 2]).sum((0, 1)) / seen).sum()


@dataclass(frozen=True)
class Teacher:
    """What the policy from before answers to a batch, for those samples whose answers are to be kept."""

    policy: Policy
    memory: Memory
    share: Tensor  # (B,) of the teacher's answer in what is taught; 0 where the label alone counts

    @classmethod
    def of(cls, policy: Policy, images: Tensor, batch: Batch, keep: float) -> Teacher:
        """images: as `pixels` gives them, with their augmentation, so that both look at the same."""
        device = images.device
        ids, state, picture, old = (
            torch.from_numpy(a).to(device) for a in (batch.ids, batch.state, batch.picture, batch.old)
        )
        with torch.no_grad():
            return cls(policy, policy.observe(images, ids, state, picture), keep * old.float())

    def mix(self, label: Tensor, answer: Tensor) -> Tensor:
        """label, answer (B, ...) -> what is taught. A squared error's best answer to the mixture is the mixture."""
        return torch.lerp(label, answer.float(), self.share.view(-1, *[1] * (answer.dim() - 1)))

    @torch.no_grad()
    def action(self, asked: Question) -> Tensor:
        answer = self.policy.head(asked.x, asked.tau, self.memory, asked.prefix)  # (B, D, R, A)
        return self.mix(asked.answer.expand_as(answer), answer)

    @torch.no_grad()
    def point(self, label: Tensor, naming: str) -> Tensor:
        """naming: how the pupil finds things. One that does it in another way is taught by the truth: what is new
        wants labels (docs/decisions.md)."""
        if naming != self.policy.config.naming:
            return label
        return self.mix(label, self.memory.named.softmax(-1))

    @torch.no_grad()
    def pooled(self, label: Tensor, output: nn.Module) -> Tensor:
        """output: one of the policy's small ones, as it is to be compared with `label`."""
        return self.mix(label, output(self.memory.pooled.float()))


def losses(
    model: Policy, config: TrainConfig, batch: Batch, generator: torch.Generator, before: Policy | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Total loss of a batch, as `config.weights` add it up, and its parts. `before`: what old samples are answered by,
    as far as `config.keep` says."""
    device = model.state_mean.device
    raw, aux, done_truth, point_truth, ids, state, picture = (
        torch.from_numpy(a).to(device)
        for a in (batch.chunk, batch.aux, batch.done, batch.point, batch.ids, batch.state, batch.picture)
    )
    chunk = model.normalise(raw)  # (B, R, A)
    images = pixels(batch, device)
    memory = model.observe(images, ids, state, picture)
    pooled = memory.pooled.float()
    known = aux[:, 0].isfinite().float()  # (B,) 0 where nobody can tell where things were
    valid = aux[:, 6].nan_to_num()  # (B,)
    aux = aux.nan_to_num()
    object_truth, target_truth = aux[:, :3] / WHERE_SCALE_M, aux[:, 3:6] / WHERE_SCALE_M
    cells = spread(point_truth, memory.named.shape[-1])
    teacher = None
    if before is not None and batch.old.any():
        teacher = Teacher.of(before, images, batch, config.keep)
        object_truth = teacher.pooled(object_truth, before.where_object)
        target_truth = teacher.pooled(target_truth, before.where_target)
        done_truth = teacher.pooled(done_truth[:, None], nn.Sequential(before.done, nn.Sigmoid()))[:, 0]
        cells = teacher.point(cells, model.config.naming)
    action = model.objective.loss(
        model.head, chunk, memory, generator, config.draws, config.prefix_probability, teacher and teacher.action
    ).mean()
    found = model.where_object(pooled)  # (B, 3), in WHERE_SCALE_M
    off = F.smooth_l1_loss(found, object_truth, beta=0.3, reduction="none").mean(1)
    where_object = (off * known).sum() / known.sum().clamp(min=1.0)
    miss = F.smooth_l1_loss(model.where_target(pooled), target_truth, beta=0.3, reduction="none").mean(1)
    where_target = (miss * valid).sum() / valid.sum().clamp(min=1.0)
    done = F.binary_cross_entropy_with_logits(model.done(pooled)[:, 0], done_truth)
    distance = (found.detach() * WHERE_SCALE_M - aux[:, :3]).norm(dim=1)  # (B,) m
    near = (distance < SURE_WITHIN_M).float()
    doubt = F.binary_cross_entropy_with_logits(model.sure(pooled.detach())[:, 0], near, reduction="none")
    sure = (doubt * known).sum() / known.sum().clamp(min=1.0)
    point, aim = point_loss(memory.named, point_truth, cells), aim_loss(memory.named, point_truth)
    w = config.weights
    total = (
        w.action * action
        + w.where * (where_object + where_target)
        + w.point * point
        + w.aim * aim
        + w.done * done
        + w.sure * sure
    )
    parts = {
        "action": action,
        "where_object": where_object,
        "where_target": where_target,
        "point": point,
        "aim": aim,
        "done": done,
        "sure": sure,
        "where_cm": (distance * known).sum() / known.sum().clamp(min=1.0) * 100,
    }
    return total, {k: float(v.detach()) for k, v in parts.items()}


@torch.no_grad()
def validate(
    model: Policy, config: TrainConfig, data: Dataset, tokenizer: Tokenizer, picks: NDArray[np.int64]
) -> dict[str, float]:
    """Open-loop figures on labels `picks` (n, 2). They tell whether training works, not whether the arm does.

    row4_mm, row_last_mm: median position error of the fourth and last row. grip_wrong, done_*: shares."""
    model.eval()
    device = model.state_mean.device
    rng = np.random.default_rng((config.seed, 7))
    picks = picks[rng.permutation(len(picks))[: config.validation_samples]]
    sums: dict[str, list[float]] = {}
    for i in range(0, len(picks), 128):
        batch = data.batch(picks[i : i + 128], rng, tokenizer, None)
        generator = torch.Generator().manual_seed(i)
        part = losses(model, config, batch, generator)[1]
        noise = torch.randn(len(batch.chunk), model.config.rows, model.config.cols, generator=generator)
        seen = batch.images[batch.picture]  # (B, K, P, P, 3)
        images, ids, state = (torch.from_numpy(a).to(device) for a in (seen, batch.ids, batch.state))
        chunk, done, sure = (t.cpu() for t in model(images, ids, state, noise.to(device)))
        truth = torch.from_numpy(batch.chunk)
        is_done = batch.done > 0.5
        if model.config.action_space == "tool_delta":
            off = (chunk[..., :3] - truth[..., :3]).norm(dim=-1) * 1000  # (B, R) mm
            part["row4_mm"] = float(off[:, min(3, off.shape[1] - 1)].median())
            part["row_last_mm"] = float(off[:, -1].median())
        else:
            part["joints_mrad"] = float((chunk[..., :-1] - truth[..., :-1]).abs().median()) * 1000
        part |= {
            "grip_wrong": float(((chunk[..., -1] > 0.5) != (truth[..., -1] > 0.5)).float().mean()),
            "sure_mean": float(sure.mean()),
            "done_false": float((done.numpy() > 0.9)[~is_done].mean()) if (~is_done).any() else 0.0,
        }
        if is_done.any():
            part["done_recall"] = float((done.numpy() > 0.9)[is_done].mean())
        for key, value in part.items():
            sums.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in sums.items()}
