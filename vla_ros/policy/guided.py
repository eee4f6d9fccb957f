"""Real-time chunking at inference time: a chunk that is pulled towards the running one while it is denoised.

Black, Galliker and Levine 2025 (2506.07339). Needs no training with a prefix, but one backward pass through the head
per denoising step, so it runs in PyTorch only: exported graphs have no gradient. For policies with objective `flow`,
in evaluation (`vla eval --runtime torch --chunking guided`); the nodes commit a prefix instead, which is cheaper.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_ros.core.contract import Contract
from vla_ros.core.types import Observation
from vla_ros.policy.manifest import PolicyInvalid
from vla_ros.policy.model import Memory, Policy
from vla_ros.policy.runtime import PolicyOutput, PolicyRuntime
from vla_ros.policy.torch_runtime import TorchGraph, load_run

GUIDANCE_MAX = 5.0  # beta of the paper, for 5 denoising steps


def overlap_weights(rows: int, overlap: int, executed: int) -> NDArray[np.float64]:
    """(rows,): 1 where the running chunk will have been executed, falling to 0 at the end of the overlap, 0 after."""
    i = np.arange(rows)
    c = np.clip((overlap - i) / (overlap - min(executed, overlap) + 1), 0.0, 1.0)
    soft = c * np.expm1(c) / math.expm1(1.0)
    return np.where(i < min(executed, overlap), 1.0, np.where(i < overlap, soft, 0.0))


def sample_guided(
    model: Policy, memory: Memory, noise: Tensor, previous: Tensor, weight: Tensor, steps: int | None = None
) -> Tensor:
    """noise (B, R, A), previous (B, R, A) normalised, weight (R,) -> chunk (B, R, A), normalised."""
    steps = steps or model.config.steps
    x, target = noise[:, None], previous[:, None]  # (B, 1, R, A)
    for k in range(steps):
        tau = k / steps
        # (1 - tau) / tau / r^2 with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2), as in pseudo-inverse guidance.
        strength = min(GUIDANCE_MAX, (tau**2 + (1 - tau) ** 2) / (tau * (1 - tau))) if tau > 0.0 else GUIDANCE_MAX
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = model.head(x, noise.new_full((1, 1), tau), memory)
            end = x + (1 - tau) * velocity
            error = weight[:, None] * (target - end.detach())
            (pull,) = torch.autograd.grad(end, x, error)
        x = (x + (velocity + strength * pull) / steps).detach()
    return x[:, 0]  # (B, R, A)


class GuidedGraph(TorchGraph):
    """`overlap` (m, A) physical and `executed` are set before each call; without overlap it samples as always."""

    overlap: NDArray[np.float64] | None = None
    executed = 0

    def __call__(
        self,
        images: NDArray[np.uint8],
        ids: NDArray[np.int64],
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        prefix: NDArray[np.float32],
        prefix_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], float, float]:
        if self.overlap is None or not len(self.overlap):
            return super().__call__(images, ids, state, noise, prefix, prefix_rows)
        model, (rows, cols) = self._model, noise.shape[1:]
        m = min(len(self.overlap), rows)
        previous = np.zeros((1, rows, cols), dtype=np.float32)
        previous[0, :m] = self.overlap[:m]
        weight = torch.from_numpy(overlap_weights(rows, m, self.executed).astype(np.float32))
        with torch.no_grad():  # not inference_mode: its tensors may not take part in a gradient
            memory = model.observe(torch.from_numpy(images), torch.from_numpy(ids), torch.from_numpy(state))
            target = model.normalise(torch.from_numpy(previous))
            chunk = model.denormalise(sample_guided(model, memory, torch.from_numpy(noise), target, weight))
            done, sure = model.done(memory.pooled).sigmoid(), model.sure(memory.pooled).sigmoid()
        return chunk.numpy(), float(done), float(sure)


class GuidedRuntime(PolicyRuntime):
    """A `PolicyRuntime` that can be told what the running chunk still says."""

    _graph: GuidedGraph

    def infer_guided(
        self,
        observation: Observation,
        text: str,
        rng: np.random.Generator,
        overlap: NDArray[np.float64],
        executed: int,
    ) -> PolicyOutput:
        """overlap (m, cols): the running chunk's rows that lie ahead, relative to this observation's tool pose, of
        which the first `executed` will have been executed when the new chunk arrives."""
        self._graph.overlap, self._graph.executed = overlap, executed
        try:
            return self.infer(observation, text, rng)
        finally:
            self._graph.overlap = None


def load_run_guided(path: str | Path, contract: Contract, threads: int = 1) -> GuidedRuntime:
    """A run folder, or one of its snapshots. Raises PolicyInvalid where it is not one, or not of objective `flow`."""
    plain = load_run(path, contract, threads)
    model = plain._graph._model
    if model.config.objective != "flow":
        raise PolicyInvalid(f"{path}: objective is {model.config.objective!r}; guidance needs flow")
    model.requires_grad_(False)  # only with respect to the chunk
    return GuidedRuntime(plain.manifest, contract, GuidedGraph(model), plain.precision, plain.checkpoint_hash)
