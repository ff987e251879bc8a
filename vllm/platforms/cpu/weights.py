"""Weights in the layout that the CPU kernels stream: packed once, after loading, and held once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vllm.layers.methods import ExpertsMethod, Unquantized

if TYPE_CHECKING:
    from vllm.layers.linear import Weighted
    from vllm.layers.moe import Experts


class PackedLinear(Unquantized):
    """weight: panels of 64 outputs [ceil(out / 64), depth, 64], see csrc/cpu/isa/gemm.cpp."""

    def finish(self, layer: Weighted) -> None:
        layer.num_outputs, layer.num_inputs = layer.weight.shape
        layer.weight = nn.Parameter(
            torch.ops.vllm.pack_weight.default(layer.weight), requires_grad=False
        )

    def apply(self, layer: Weighted, x: Tensor, wide: bool = False) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_linear.default(
            x, layer.weight, layer.bias, layer.num_outputs, wide
        )
        return out

    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        rows: Tensor = torch.ops.vllm.packed_rows.default(
            layer.weight, ids, layer.num_outputs, layer.num_inputs
        )
        return rows


class PackedExperts(ExpertsMethod):
    """w13 and w2 as [E, ...] of what PackedLinear makes of one."""

    def finish(self, layer: Experts) -> None:
        self.intermediate = layer.w2.shape[2]
        layer.w13 = self._packed(layer.w13)
        layer.w2 = self._packed(layer.w2)

    def _packed(self, weights: Tensor) -> nn.Parameter:
        packed = torch.stack([torch.ops.vllm.pack_weight.default(w) for w in weights])
        return nn.Parameter(packed, requires_grad=False)

    def apply(self, layer: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_moe.default(
            x, layer.w13, layer.w2, ids, weights, self.intermediate, layer.act
        )
        return out
