"""Random weights, for measuring without a checkpoint."""

from __future__ import annotations

import zlib

import torch
from torch import nn

from vllm.layers.weights import ELSEWHERE
from vllm.loader.filler import loadable_layers


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Small weights, the same for the same seed whatever the dtype, device and number of ranks."""
    generator = torch.Generator()
    for path, layer in loadable_layers(model):
        for destination in layer.destinations():
            if destination.open is ELSEWHERE:
                continue
            # Of each tensor by itself: a stage of a pipeline has not all of them.
            name = (seed, path, destination.parameter, destination.part, destination.expert)
            generator.manual_seed(zlib.crc32(repr(name).encode()))
            destination.fill(destination.random(destination.shape, generator))
        layer.finish()
