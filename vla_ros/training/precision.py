"""Which number format a machine computes fast in. `auto` never asks for one that is only emulated."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # x86 and Arm names in /proc/cpuinfo


def has_bfloat16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has bfloat16 instructions; what cannot be found out counts as no."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.system() != "Linux":
        return False
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))
