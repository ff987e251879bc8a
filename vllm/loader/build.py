"""A model with memory for its weights: its layers declare, a scheme chooses, memory is taken."""

from __future__ import annotations

import torch
from torch import nn

from vllm.layers.moe import Experts
from vllm.layers.schemes import Scheme
from vllm.layers.weighted import Weighted
from vllm.loader.filler import loadable_layers


def choose(model: nn.Module, scheme: Scheme) -> None:
    """Give every layer the method that stores and multiplies its weights. Raises ConfigError."""
    for path, layer in loadable_layers(model):
        if isinstance(layer, Weighted):
            layer.method = scheme.weights(path, layer)
        elif isinstance(layer, Experts):
            layer.method = scheme.experts(path, layer)


def allocate(model: nn.Module, device: torch.device) -> None:
    """Take the memory of all weights on `device`, uninitialised."""
    for _, layer in loadable_layers(model):
        layer.allocate(device)
