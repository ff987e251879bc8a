"""Cosines and sines: tabulated once per model, gathered once per launch, used by every layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vllm.layers.context import ModelContext
from vllm.layers.norm import RMSNorm
from vllm.layers.rope.frequencies import dynamic, frequencies
from vllm.layers.rope.parameters import RopeParameters
from vllm.ops.rotary import RopeTable, RotaryStyle


class Rope(NamedTuple):
    """Rotation of a launch's tokens, as `ops.rope_rows` gives it; empty for models without rope."""

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
        self.norm_and_rotate = context.ops.normed_rotary
        self.rows = context.ops.rope_rows
        table = rope_table(parameters, context.config.model.max_model_len)
        # Not parameters: derived from the config, never in a checkpoint.
        self.register_buffer("cos", table.cos.to(context.device), persistent=False)
        self.register_buffer("sin", table.sin.to(context.device), persistent=False)
        self.register_buffer("inverse", table.inverse.to(context.device), persistent=False)
        self.scale = table.scale

    def forward(self, positions: Tensor) -> Rope:
        table = RopeTable(self.cos, self.sin, self.inverse, self.scale)
        return Rope(*self.rows(table, positions, self.style))

    def apply(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """q [T, N, D] and k [T, K, D], rotated."""
        return self.rotate(q, k, rope.cos, rope.sin, self.style)

    def apply_normed(
        self, q: Tensor, k: Tensor, norms: tuple[RMSNorm, RMSNorm], rope: Rope
    ) -> tuple[Tensor, Tensor]:
        """The same of heads that `norms` of one epsilon normalise first."""
        q_norm, k_norm = norms
        return self.norm_and_rotate(
            q, k, q_norm.weight, k_norm.weight, q_norm.eps, rope.cos, rope.sin, self.style
        )


class NoRope(nn.Module):
    """For models whose positions enter elsewhere."""

    def forward(self, positions: Tensor) -> Rope:
        empty = positions.new_empty(0, dtype=torch.float32)
        return Rope(empty, empty)

    def apply(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return q, k

    def apply_normed(
        self, q: Tensor, k: Tensor, norms: tuple[RMSNorm, RMSNorm], rope: Rope
    ) -> tuple[Tensor, Tensor]:
        return norms[0](q), norms[1](k)


def tabulate(parameters: RopeParameters, max_model_len: int) -> tuple[Tensor, Tensor]:
    """cos and sin, [max_model_len, R/2] float32 on the host."""
    table = rope_table(parameters, max_model_len)
    return table.cos, table.sin


def rope_table(parameters: RopeParameters, max_model_len: int) -> RopeTable:
    """On the host, of `max_model_len` positions."""
    positions = torch.arange(max_model_len)
    if parameters.kind == "dynamic":
        inverse, scale = dynamic(parameters, (positions + 1)[:, None]).float(), 1.0
    else:
        inverse, scale = frequencies(parameters, max_model_len)
    angles = positions.float()[:, None] * inverse
    kept = inverse if inverse.dim() == 1 else inverse.new_empty(0)
    return RopeTable(angles.cos() * scale, angles.sin() * scale, kept, scale)
