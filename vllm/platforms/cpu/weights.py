"""Weights in the layout that the CPU kernels stream: packed as they are read, and held once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vllm.layers.methods import ExpertsMethod, ExpertWeights
from vllm.layers.plain import Plain, destination
from vllm.layers.shapes import Piece
from vllm.layers.weighted import Weighted
from vllm.layers.weights import Destination, Target

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


class PackedLinear(Plain):
    """weight: panels [ceil(out / 64), depth, 64], see csrc/cpu/isa/gemm.cpp."""

    def allocate(self, layer: Weighted, device: torch.device) -> None:
        layer.weight = _parameter(
            torch.ops.vllm.empty_packed.default(
                layer.num_outputs, layer.num_inputs, layer.is_gated, layer.dtype
            )
        )
        if layer.has_padding:
            layer.weight.data.zero_()

    def target(self, layer: Weighted, piece: Piece) -> PackedRows:
        half, first = _WHOLE, piece.first
        if layer.is_gated:
            half, first = divmod(first, layer.num_outputs // 2)
        return PackedRows(layer.weight.data, half, first, (piece.count, layer.num_inputs))

    def new_bias(self, layer: Weighted, device: torch.device) -> nn.Parameter:
        """What panels add, in their order if the layer is gated."""
        if not layer.is_gated:
            return super().new_bias(layer, device)
        return _parameter(_packed_bias(torch.zeros(layer.num_outputs)).to(layer.dtype))

    def bias_target(self, layer: Weighted, first: int, count: int) -> Target:
        if not layer.is_gated:
            return super().bias_target(layer, first, count)
        return layer.stage("bias", (layer.num_outputs,), layer.dtype)[first : first + count]

    def finish(self, layer: Weighted) -> None:
        if layer.is_gated and layer.bias is not None:
            layer.bias.data.copy_(_packed_bias(layer.unstage("bias").float()))

    def apply(self, layer: Weighted, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_linear.default(
            x, layer.weight, layer.bias, layer.num_outputs, False
        )
        return out

    def scores(self, layer: Weighted, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_linear.default(
            x, layer.weight, layer.bias, layer.num_outputs, True
        )
        return out

    def greatest(self, layer: Weighted, x: Tensor, outputs: int) -> tuple[Tensor, Tensor] | None:
        found: tuple[Tensor, Tensor] = torch.ops.vllm.packed_greatest.default(
            x, layer.weight, layer.bias, outputs
        )
        return found

    def apply_gated(self, layer: Weighted, x: Tensor) -> Tensor:
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

    def allocate(self, layer: ExpertWeights, device: torch.device) -> None:
        count, hidden, width = layer.num_experts, layer.hidden, layer.width
        layer.w13 = _stacked(count, 2 * width, hidden, True, layer.dtype)
        layer.w2 = _stacked(count, hidden, width, False, layer.dtype)

    def destinations(self, layer: ExpertWeights) -> Iterator[Destination]:
        for piece in layer.pieces():
            yield destination(piece, partial(self._target, layer, piece))

    def _target(self, layer: ExpertWeights, piece: Piece) -> PackedRows:
        shape = (piece.count, piece.num_inputs)
        if piece.prefix == "w2.":
            return PackedRows(layer.w2.data[piece.local_expert], _WHOLE, 0, shape)
        half = _GATE if piece.part == "gate" else _UP
        return PackedRows(layer.w13.data[piece.local_expert], half, 0, shape)

    def apply(self, layer: ExpertWeights, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.packed_moe.default(
            x, layer.w13, layer.w2, ids, weights, layer.width, layer.act
        )
        return out


def _packed_bias(bias: Tensor) -> Tensor:
    """[2 * I] -> what the panels of a gated weight add: one input wide, a weight packs to that."""
    panels: Tensor = torch.ops.vllm.pack_weight.default(bias.unsqueeze(1), True)
    return panels.flatten()


def _stacked(
    count: int, outputs: int, inputs: int, gated: bool, dtype: torch.dtype
) -> nn.Parameter:
    """Panels of `count` weights, stacked."""
    panels: Tensor = torch.ops.vllm.empty_packed.default(outputs, inputs, gated, dtype)
    stacked = torch.empty(count, *panels.shape, dtype=dtype)
    stacked[:, -1].zero_()  # outputs may be missing there
    return _parameter(stacked)


def _parameter(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)
