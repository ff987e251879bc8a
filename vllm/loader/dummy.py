"""Random weights, for measuring without a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from vllm.layers.weights import ELSEWHERE
from vllm.loader.filler import loadable_layers


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Small weights, the same for the same seed whatever the dtype, device and number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in loadable_layers(model):
        for destination in layer.destinations():
            values = destination.random(destination.shape, generator)
            if destination.open is not ELSEWHERE:
                destination.fill(values)
        layer.finish()
