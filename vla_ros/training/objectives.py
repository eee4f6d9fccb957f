"""How the head learns: one interface, so that objectives can be compared on the same model.

Every objective has `loss(head, chunk, memory, generator, draws, prefix_probability)` -> (B,) mean error per sample; the
model's `sample` undoes it at run time. Flow time: noise at 0, data at 1 (so the target velocity is data - noise).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vla_ros.policy.model import Head, Memory, ModelConfig


class Objective(Protocol):
    def loss(
        self,
        head: Head,
        chunk: Tensor,
        memory: Memory,
        generator: torch.Generator,
        draws: int,
        prefix_probability: float,
    ) -> Tensor: ...


def draw_prefix(
    batch: int, draws: int, rows: int, longest: int, probability: float, generator: torch.Generator
) -> Tensor:
    """(B, D, R, 1) bool: True on leading rows that are given; with `probability` 0..longest of them, else none."""
    length = torch.randint(0, longest + 1, (batch, draws), generator=generator)  # (B, D)
    length = length * (torch.rand(batch, draws, generator=generator) < probability)
    return (torch.arange(rows) < length[:, :, None])[..., None]  # (B, D, R, 1)


def mean_over_free(error: Tensor, prefix: Tensor) -> Tensor:
    """error (B, D, R, A), averaged over what was not given. -> (B,)"""
    free = (~prefix).to(error.dtype)  # (B, D, R, 1)
    return (error * free).sum((1, 2, 3)) / (free.sum((1, 2, 3)) * error.shape[-1])


class Flow:
    """Flow matching on straight lines (2210.02747), with a clean prefix of random length (real-time chunking)."""

    def __init__(self, config: ModelConfig) -> None:
        self.rows, self.longest = config.rows, config.prefix_max

    def loss(
        self,
        head: Head,
        chunk: Tensor,
        memory: Memory,
        generator: torch.Generator,
        draws: int,
        prefix_probability: float,
    ) -> Tensor:
        B, R, A = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        noise = torch.randn(B, draws, R, A, generator=generator)
        tau = (
            torch.arange(draws) + torch.rand(B, draws, generator=generator)
        ) / draws  # stratified: covers 0..1 per sample
        prefix = draw_prefix(B, draws, R, self.longest, prefix_probability, generator)
        x = noise + tau[:, :, None, None] * (data - noise)  # (B, D, R, A)
        x = torch.where(prefix, data, x)
        velocity = head(x, tau, memory, prefix)
        return mean_over_free((velocity.float() - (data - noise)).square(), prefix)


class L1:
    """Direct regression: the head sees zeros (or the prefix) instead of noise and answers with the chunk itself."""

    def __init__(self, config: ModelConfig) -> None:
        self.rows, self.longest = config.rows, config.prefix_max

    def loss(
        self,
        head: Head,
        chunk: Tensor,
        memory: Memory,
        generator: torch.Generator,
        draws: int,
        prefix_probability: float,
    ) -> Tensor:
        B, R, _ = chunk.shape
        data = chunk[:, None]  # (B, 1, R, A)
        prefix = draw_prefix(B, 1, R, self.longest, prefix_probability, generator)
        x = torch.where(prefix, data, torch.zeros(()))
        return mean_over_free((head(x, chunk.new_zeros(1, 1), memory, prefix).float() - data).abs(), prefix)


OBJECTIVES: dict[str, type[Flow] | type[L1]] = {"flow": Flow, "l1": L1}
