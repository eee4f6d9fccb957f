"""One process or several: what the trainer needs to know about the others, and the one number exchange per step.

`accelerate launch --num_processes N -m vla_ros.cli.main train ...` starts several, on one machine or more; without it
there is one and `accelerate` is not imported. Every process makes the same batch, computes the gradients of its own
part, and all go on with the mean (data parallel), so that they stay equal without ever sending weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Processes(Protocol):
    """`count` processes, of which this is number `index`; number 0 is the one that writes files and speaks."""

    count: int
    index: int
    device: torch.device

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean of each tensor over all processes; all must call it with the same shapes."""
        ...

    def wait(self) -> None:
        """Returns when all have come here."""
        ...


class Alone:
    """The only process."""

    count, index = 1, 0

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    def wait(self) -> None:
        return None


class Several:
    """One of several, as `accelerate` started them."""

    def __init__(self, device: str) -> None:
        from accelerate import Accelerator  # seconds; only where it is used

        self._accelerator = Accelerator(cpu=device == "cpu")
        self.count, self.index = self._accelerator.num_processes, self._accelerator.process_index
        self.device = self._accelerator.device

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        whole = self._accelerator.reduce(flat, "mean")
        parts = whole.split([t.numel() for t in tensors])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def join(device: str) -> Processes:
    """What the environment says: launchers set WORLD_SIZE."""
    return Several(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone(device)
