"""Weights in the layout that the CPU kernels stream: packed once, after loading, and held once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vllm.layers.methods import ExpertsMethod, Unquantized

if TYPE_CHECKING:
    from vllm.layers.linear import GatedLinear, Weighted
    from vllm.layers.moe import Experts


class PackedLinear(Unquantized):
    """weight: panels [ceil(out / 64), depth, 64], see csrc/cpu/isa/gemm.cpp."""

    def finish(self, layer: Weighted) -> None:
        layer.num_outputs, layer.num_inputs = layer.weight.shape
        layer.weight = _packed(layer.weight, gated=False)

    def apply(self, layer: Weighted, x: Tensor, wide: bool = False) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_linear.default(
            x, layer.weight, layer.bias, layer.num_outputs, wide
        )
        return out

    def finish_gated(self, layer: GatedLinear) -> None:
        layer.num_outputs, layer.num_inputs = layer.weight.shape
        layer.weight = _packed(layer.weight, gated=True)
        if layer.bias is not None:
            # One input wide, a weight packs to what its panels add.
            panels = _packed(layer.bias.float().unsqueeze(1), gated=True)
            layer.bias = nn.Parameter(panels.flatten().to(layer.bias.dtype), requires_grad=False)

    def apply_gated(self, layer: GatedLinear, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_gated.default(
            x, layer.weight, layer.bias, layer.num_outputs // 2, layer.act
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
        layer.w13 = _stacked(layer.w13, gated=True)
        layer.w2 = _stacked(layer.w2, gated=False)

    def apply(self, layer: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_moe.default(
            x, layer.w13, layer.w2, ids, weights, self.intermediate, layer.act
        )
        return out


def _packed(weight: Tensor, gated: bool) -> nn.Parameter:
    packed = torch.ops.vllm.pack_weight.default(weight, gated)
    return nn.Parameter(packed, requires_grad=False)


def _stacked(weights: Tensor, gated: bool) -> nn.Parameter:
    packed = [torch.ops.vllm.pack_weight.default(weight, gated) for weight in weights]
    return nn.Parameter(torch.stack(packed), requires_grad=False)
