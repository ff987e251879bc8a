"""Weights in the layout that the CPU kernels stream: packed as they are read, and held once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vllm.layers.methods import ExpertsMethod, Unquantized

if TYPE_CHECKING:
    from vllm.layers.context import ModelContext
    from vllm.layers.linear import GatedLinear, Weighted
    from vllm.layers.moe import Experts

_PIECE_BYTES = 8 << 20  # converted at a time
_WHOLE, _GATE, _UP = -1, 0, 1  # what of a weight, as pack_rows counts


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Some outputs of a packed weight, or of a half of it if it is gated."""

    packed: Tensor
    half: int
    first: int
    shape: tuple[int, int]  # [outputs, inputs] before packing

    def copy_(self, source: Tensor, /) -> None:
        if source.dtype == self.packed.dtype and source.stride(-1) == 1:
            return self._pack(source, self.first)
        num_rows = max(1, _PIECE_BYTES // max(1, self.shape[1] * self.packed.element_size()))
        first = self.first
        for some in source.split(num_rows):
            self._pack(some.to(self.packed.dtype).contiguous(), first)
            first += len(some)

    def _pack(self, rows: Tensor, first: int) -> None:
        torch.ops.vllm.pack_rows.default(rows, self.packed, first, self.half)


class PackedLinear(Unquantized):
    """weight: panels [ceil(out / 64), depth, 64], see csrc/cpu/isa/gemm.cpp."""

    def allocate(
        self, layer: Weighted, num_outputs: int, num_inputs: int, context: ModelContext
    ) -> None:
        layer.num_outputs, layer.num_inputs = num_outputs, num_inputs
        layer.weight = _parameter(
            torch.ops.vllm.empty_packed.default(
                num_outputs, num_inputs, layer.is_gated, context.dtype
            )
        )

    def target(self, layer: Weighted, first: int, count: int) -> PackedRows:
        half = _WHOLE
        if layer.is_gated:
            half, first = divmod(first, layer.num_outputs // 2)
        return PackedRows(layer.weight.data, half, first, (count, layer.num_inputs))

    def finish(self, layer: Weighted) -> None:
        if layer.is_gated and layer.bias is not None:
            # One input wide, a weight packs to what its panels add.
            wide = layer.bias.float().unsqueeze(1)
            panels: Tensor = torch.ops.vllm.pack_weight.default(wide, True)
            layer.bias = _parameter(panels.flatten().to(layer.bias.dtype))

    def apply(self, layer: Weighted, x: Tensor, wide: bool = False) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_linear.default(
            x, layer.weight, layer.bias, layer.num_outputs, wide
        )
        return out

    def greatest(self, layer: Weighted, x: Tensor) -> Tensor | None:
        ids: Tensor = torch.ops.vllm.packed_greatest.default(
            x, layer.weight, layer.bias, layer.num_outputs
        )
        return ids

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

    def create(
        self, layer: Experts, num_experts: int, hidden: int, width: int, context: ModelContext
    ) -> None:
        self.hidden, self.width = hidden, width
        layer.w13 = _stacked(num_experts, 2 * width, hidden, True, context.dtype)
        layer.w2 = _stacked(num_experts, hidden, width, False, context.dtype)

    def targets(self, layer: Experts, expert: int) -> tuple[PackedRows, PackedRows, PackedRows]:
        w13, w2 = layer.w13.data[expert], layer.w2.data[expert]
        wide = (self.width, self.hidden)
        return (
            PackedRows(w13, _GATE, 0, wide),
            PackedRows(w13, _UP, 0, wide),
            PackedRows(w2, _WHOLE, 0, wide[::-1]),
        )

    def apply(self, layer: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_moe.default(
            x, layer.w13, layer.w2, ids, weights, self.width, layer.act
        )
        return out


def _stacked(
    count: int, outputs: int, inputs: int, gated: bool, dtype: torch.dtype
) -> nn.Parameter:
    """Of `count` weights."""
    panels: Tensor = torch.ops.vllm.empty_packed.default(outputs, inputs, gated, dtype)
    stacked = torch.empty(count, *panels.shape, dtype=dtype)
    stacked[:, -1].zero_()  # outputs may be missing there
    return _parameter(stacked)


def _parameter(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)
