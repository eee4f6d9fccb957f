"""Low-rank adapters (LoRA, Hu et al. 2021, 2106.09685) in the linear layers of a module, by `peft`."""

from __future__ import annotations

from torch import nn


def add(module: nn.Module, rank: int) -> None:
    """Put an adapter beside every linear layer; from now on only adapters are trained. alpha = 2 * rank, a choice."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    names = [name for name, part in module.named_modules() if type(part) is nn.Linear]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), module)


def merge(module: nn.Module) -> None:
    """Add the adapters' products to the weights and take them out: plain layers and plain names again."""
    from peft.tuners.lora import LoraLayer

    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, LoraLayer):
                part.merge()
                setattr(parent, name, part.get_base_layer())
    module.requires_grad_(True)
