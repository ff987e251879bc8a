"""Random weights, for measuring without a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

STD = 0.02


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Small normal weights, the same for the same seed whatever the dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * STD)
