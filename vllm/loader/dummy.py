"""Random weights, for measuring without a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from vllm.layers.weights import Loadable

STD = 0.02


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Small normal weights, the same for the same seed whatever the dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for slot in module.slots() if isinstance(module, Loadable) else ():
            slot.target.copy_(torch.randn(slot.target.shape, generator=generator) * STD)
