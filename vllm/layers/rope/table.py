"""Cosines and sines: tabulated once per model, gathered once per launch, used by every layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vllm.layers.context import ModelContext
from vllm.layers.rope.frequencies import dynamic, frequencies
from vllm.layers.rope.parameters import RopeParameters
from vllm.ops.rotary import RotaryStyle


class Rope(NamedTuple):
    """Rotation of a launch's tokens. Both [T, R/2] float32; empty for models without rope."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """Positions [T] int32 -> Rope. The rotation depends on the position alone.

    So do keys in the cache, whatever chunks or prefixes they were computed in. That is why dynamic
    scaling is evaluated here for each position as the last one of its context.
    """

    def __init__(
        self,
        parameters: RopeParameters,
        context: ModelContext,
        style: RotaryStyle = "neox",
    ) -> None:
        super().__init__()
        self.style = style
        self.rotate = context.ops.rotary
        cos, sin = tabulate(parameters, context.config.model.max_model_len)
        # Not parameters: derived from the config, never in a checkpoint.
        self.register_buffer("cos", cos.to(context.device), persistent=False)
        self.register_buffer("sin", sin.to(context.device), persistent=False)

    def forward(self, positions: Tensor) -> Rope:
        return Rope(self.cos.index_select(0, positions), self.sin.index_select(0, positions))

    def apply(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """q [T, N, D] and k [T, K, D], rotated."""
        return self.rotate(q, k, rope.cos, rope.sin, self.style)


class NoRope(nn.Module):
    """For models whose positions enter elsewhere."""

    def forward(self, positions: Tensor) -> Rope:
        empty = positions.new_empty(0, dtype=torch.float32)
        return Rope(empty, empty)

    def apply(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return q, k


def tabulate(parameters: RopeParameters, max_model_len: int) -> tuple[Tensor, Tensor]:
    """cos and sin, [max_model_len, R/2] float32 on the host."""
    positions = torch.arange(max_model_len)
    if parameters.kind == "dynamic":
        inverse, scale = dynamic(parameters, (positions + 1)[:, None]).float(), 1.0
    else:
        inverse, scale = frequencies(parameters, max_model_len)
    angles = positions.float()[:, None] * inverse
    return angles.cos() * scale, angles.sin() * scale
