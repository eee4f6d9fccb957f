"""How the head learns and how it is sampled: one interface, so that objectives can be compared on the same model.

Each objective is a matched pair: `question` teaches the head, `sample` undoes it at run time with numbers that the
exporter can unroll. All of them share one convention, time 0 is noise and time 1 is data (a sign error would still
run), and one way to go on from a committed motion: the rows of a clean prefix are put in place of whatever the head
would see there (training-time real-time chunking), and are not part of the loss.

| name | the head answers with | passes | source |
|---|---|---|---|
| flow | velocity data - noise on a straight line | `steps` | flow matching, Lipman et al. 2022 (2210.02747) |
| ddim | v (2202.00512) or the noise, on a cosine schedule | `steps` | DDIM, Song et al. 2020 (2010.02502) |
| l1 | the chunk | 1 | OpenVLA-OFT, Kim et al. 2025 (2502.19645) |
| mip | the chunk, then the chunk again from near it | 2 | Much Ado About Noising, 2025 (2512.01809) |

Letters as in `vla_ros.policy.model`: B batch, D noise draws that share one backbone pass, R rows, A columns. Chunks are
normalised here (no unit): see `Policy.normalise`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vla_ros.policy.model import Head, Memory, ModelConfig

MIP_TIME = 0.9  # where the second pass stands between noise and data; the paper's value
# Noise amplitude at time 0 is sin(DDIM_START): not quite one, since the noise's prediction divides by the cosine.
DDIM_START = math.acos(0.02)  # a choice
DDIM_LIMIT = 6.0  # deviations: where a predicted chunk is clipped between steps, as DDIM implementations do; a choice


@dataclass(frozen=True)
class Question:
    """What the head is asked in training, and the right answer."""

    x: Tensor  # (B, D, R, A)
    tau: Tensor  # (B, D) or (1, 1)
    prefix: Tensor  # (B, D, R, 1) bool: rows that are given
    answer: Tensor  # (B, D, R, A), or (B, 1, R, A) where all draws have the same


class Objective(ABC):
    """A way to learn and its way to sample."""

    def __init__(self, config: ModelConfig) -> None:
        self.longest = config.prefix_max

    def loss(
        self,
        head: Head,
        chunk: Tensor,
        memory: Memory,
        generator: torch.Generator,
        draws: int,
        prefix_probability: float,
        teacher: Callable[[Question], Tensor] | None = None,
    ) -> Tensor:
        """chunk (B, R, A) -> mean error of each sample (B,). `generator` is on the CPU: runs are repeatable.
        teacher: gives the answers, in the shape of `Question.answer`, instead of the chunk."""
        asked = self.question(chunk, generator, draws, prefix_probability)
        right = asked.answer if teacher is None else teacher(asked)
        return self.error(head(asked.x, asked.tau, memory, asked.prefix).float(), right, asked.prefix)

    @abstractmethod
    def question(
        self, chunk: Tensor, generator: torch.Generator, draws: int, prefix_probability: float
    ) -> Question: ...

    def error(self, answer: Tensor, right: Tensor, prefix: Tensor) -> Tensor:
        """Of each sample (B,), over what was not given."""
        return mean_over_free((answer - right).square(), prefix)

    @abstractmethod
    def sample(
        self, head: Head, memory: Memory, noise: Tensor, steps: int, prefix: Tensor | None, given: Tensor | None
    ) -> Tensor:
        """noise (B, R, A) -> chunk (B, R, A). `given` (B, 1, R, 1) bool: rows taken from `prefix` (B, R, A)."""


def draw_prefix(
    batch: int, draws: int, rows: int, longest: int, probability: float, generator: torch.Generator
) -> Tensor:
    """(B, D, R, 1) bool: True on leading rows that are given; with `probability` 0..longest of them, else none."""
    length = torch.randint(0, longest + 1, (batch, draws), generator=generator)  # (B, D)
    length = length * (torch.rand(batch, draws, generator=generator) < probability)
    return (torch.arange(rows) < length[:, :, None])[..., None]  # (B, D, R, 1)


def draw_times(batch: int, draws: int, generator: torch.Generator) -> Tensor:
    """(B, D) in 0..1, stratified: the draws of each sample cover the range."""
    return (torch.arange(draws) + torch.rand(batch, draws, generator=generator)) / draws


def mean_over_free(error: Tensor, prefix: Tensor) -> Tensor:
    """error (B, D, R, A), averaged over what was not given. -> (B,)"""
    free = (~prefix).to(error.dtype)  # (B, D, R, 1)
    return (error * free).sum((1, 2, 3)) / (free.sum((1, 2, 3)) * error.shape[-1])


def hold(x: Tensor, prefix: Tensor | None, given: Tensor | None) -> Tensor:
    """x (B, 1, R, A) with the given rows in place."""
    return x if given is None or prefix is None else torch.where(given, prefix[:, None], x)


def nothing(noise: Tensor) -> Tensor:
    """(B, R, A) -> zeros (B, 1, R, A). A product, because the exporter drops inputs that nothing reads."""
    return noise[:, None] * 0.0


class Flow(Objective):
    """Straight lines from noise to data, integrated by Euler steps."""

    def question(self, chunk: Tensor, generator: torch.Generator, draws: int, prefix_probability: float) -> Question:
        B, R, A = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        noise = torch.randn(B, draws, R, A, generator=generator).to(chunk)
        tau = draw_times(B, draws, generator).to(chunk)
        prefix = draw_prefix(B, draws, R, self.longest, prefix_probability, generator).to(chunk.device)
        x = noise + tau[:, :, None, None] * (data - noise)  # (B, D, R, A)
        return Question(torch.where(prefix, data, x), tau, prefix, data - noise)

    def sample(
        self, head: Head, memory: Memory, noise: Tensor, steps: int, prefix: Tensor | None, given: Tensor | None
    ) -> Tensor:
        x = noise[:, None]  # (B, 1, R, A)
        for i in range(steps):
            x = hold(x, prefix, given)
            x = x + head(x, noise.new_full((1, 1), i / steps), memory, given) / steps
        return hold(x, prefix, given)[:, 0]  # (B, R, A)


class Ddim(Objective):
    """Variance-preserving diffusion in continuous time: x = cos(angle) data + sin(angle) noise.

    The angle falls evenly from DDIM_START to 0, which is the cosine schedule (Nichol and Dhariwal 2021, 2102.09672)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.prediction = config.prediction

    def question(self, chunk: Tensor, generator: torch.Generator, draws: int, prefix_probability: float) -> Question:
        B, R, A = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        noise = torch.randn(B, draws, R, A, generator=generator).to(chunk)
        tau = draw_times(B, draws, generator).to(chunk)
        prefix = draw_prefix(B, draws, R, self.longest, prefix_probability, generator).to(chunk.device)
        angle = (DDIM_START * (1 - tau))[:, :, None, None]  # (B, D, 1, 1)
        x = torch.where(prefix, data, angle.cos() * data + angle.sin() * noise)  # (B, D, R, A)
        answer = noise if self.prediction == "epsilon" else angle.cos() * noise - angle.sin() * data
        return Question(x, tau, prefix, answer)

    def sample(
        self, head: Head, memory: Memory, noise: Tensor, steps: int, prefix: Tensor | None, given: Tensor | None
    ) -> Tensor:
        x = noise[:, None]  # (B, 1, R, A)
        for i in range(steps):
            tau, angle = i / steps, DDIM_START * (1 - i / steps)
            x = hold(x, prefix, given)
            answer = head(x, noise.new_full((1, 1), tau), memory, given)
            if self.prediction == "epsilon":
                data = (x - math.sin(angle) * answer) / math.cos(angle)
            else:
                data = math.cos(angle) * x - math.sin(angle) * answer
            data = data.clamp(-DDIM_LIMIT, DDIM_LIMIT)
            rest = (x - math.cos(angle) * data) / math.sin(angle)  # the noise that fits the clipped data
            after = DDIM_START * (1 - (i + 1) / steps)
            x = math.cos(after) * data + math.sin(after) * rest
        return hold(x, prefix, given)[:, 0]  # (B, R, A)


class L1(Objective):
    """Direct regression: the head sees zeros (or the prefix) instead of noise and answers with the chunk itself."""

    def question(self, chunk: Tensor, generator: torch.Generator, draws: int, prefix_probability: float) -> Question:
        B, R, _ = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        prefix = draw_prefix(B, 1, R, self.longest, prefix_probability, generator).to(chunk.device)
        return Question(torch.where(prefix, data, data.new_zeros(())), chunk.new_zeros(1, 1), prefix, data)

    def error(self, answer: Tensor, right: Tensor, prefix: Tensor) -> Tensor:
        return mean_over_free((answer - right).abs(), prefix)

    def sample(
        self, head: Head, memory: Memory, noise: Tensor, steps: int, prefix: Tensor | None, given: Tensor | None
    ) -> Tensor:
        x = hold(nothing(noise), prefix, given)
        return hold(head(x, noise.new_zeros(1, 1), memory, given), prefix, given)[:, 0]  # (B, R, A)


class Mip(Objective):
    """Two supervised passes: from nothing to a chunk, then from near that chunk to a better one. No noise at run time.

    The second pass is taught at MIP_TIME on MIP_TIME * data + (1 - MIP_TIME) * noise and asked on MIP_TIME * the first
    answer: the same scale in both (released code pairs a scaled loss with another sampler; mixing the two is wrong)."""

    def question(self, chunk: Tensor, generator: torch.Generator, draws: int, prefix_probability: float) -> Question:
        B, R, A = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        noise = torch.randn(B, draws, R, A, generator=generator).to(chunk)
        prefix = draw_prefix(B, draws + 1, R, self.longest, prefix_probability, generator).to(chunk.device)
        near = MIP_TIME * data + (1 - MIP_TIME) * noise  # (B, D, R, A)
        x = torch.where(prefix, data, torch.cat([torch.zeros_like(data), near], dim=1))  # (B, 1 + D, R, A)
        tau = torch.cat([chunk.new_zeros(B, 1), chunk.new_full((B, draws), MIP_TIME)], dim=1)  # (B, 1 + D)
        return Question(x, tau, prefix, data)

    def error(self, answer: Tensor, right: Tensor, prefix: Tensor) -> Tensor:
        off = (answer - right).square()
        return mean_over_free(off[:, :1], prefix[:, :1]) + mean_over_free(off[:, 1:], prefix[:, 1:])

    def sample(
        self, head: Head, memory: Memory, noise: Tensor, steps: int, prefix: Tensor | None, given: Tensor | None
    ) -> Tensor:
        x = hold(nothing(noise), prefix, given)
        first = head(x, noise.new_zeros(1, 1), memory, given)  # (B, 1, R, A)
        x = hold(MIP_TIME * first, prefix, given)
        return hold(head(x, noise.new_full((1, 1), MIP_TIME), memory, given), prefix, given)[:, 0]  # (B, R, A)


OBJECTIVES: dict[str, type[Objective]] = {
    "flow": Flow,
    "ddim": Ddim,
    "l1": L1,
    "mip": Mip,
}
