"""Quantized weights on any device: kept as they are, dequantized by torch for each product."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.layers.methods import ExpertsMethod, ExpertWeights
from vllm.layers.plain import Plain
from vllm.layers.quantization.encoding import Encoding, QuantizedPiece
from vllm.layers.quantization.loading import EncodedLoading
from vllm.layers.weighted import TableMethod, Weighted, WeightMethod
from vllm.layers.weights import Destination, parameter


class DequantizedAtUse(TableMethod):
    """weight [num_outputs, num_inputs] of the encoding's values, scales [num_outputs, 1]."""

    def __init__(self, encoding: Encoding) -> None:
        self.loading = EncodedLoading(encoding)

    def allocate(self, layer: Weighted, device: torch.device) -> None:
        outputs, inputs = layer.num_outputs, layer.num_inputs
        layer.weight = parameter((outputs, inputs), self.loading.encoding.values_dtype, device)
        layer.scales = parameter((outputs, 1), torch.float32, device)
        if layer.has_padding:
            layer.weight.data.zero_()
            layer.scales.data.zero_()

    def destinations(self, layer: Weighted) -> Iterator[Destination]:
        return self.loading.destinations(layer)

    def finish(self, layer: Weighted) -> None:
        for piece, part in self.loading.decoded(layer):
            rows = slice(piece.first, piece.first + piece.count)
            layer.weight.data[rows].copy_(part.values)
            layer.scales.data[rows].copy_(part.scales)

    def apply(self, layer: Weighted, x: Tensor) -> Tensor:
        weight = QuantizedPiece(layer.weight, layer.scales).dequantized(x.dtype)
        return F.linear(x, weight, layer.bias)

    def apply_gated(self, layer: Weighted, x: Tensor) -> Tensor:
        return layer.activate(self.apply(layer, x))

    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        rows = QuantizedPiece(F.embedding(ids, layer.weight), F.embedding(ids, layer.scales))
        return rows.dequantized(layer.dtype)


class DequantizedAtLoad(WeightMethod):
    """Weights that are quantized in the checkpoint and plain in memory, as `own` keeps them."""

    def __init__(self, encoding: Encoding, own: Plain) -> None:
        self.loading = EncodedLoading(encoding)
        self.own = own

    def allocate(self, layer: Weighted, device: torch.device) -> None:
        self.own.allocate(layer, device)

    def destinations(self, layer: Weighted) -> Iterator[Destination]:
        return self.loading.destinations(layer)

    def finish(self, layer: Weighted) -> None:
        for piece, part in self.loading.decoded(layer):
            self.own.target(layer, piece).copy_(part.dequantized(layer.dtype))
        self.own.finish(layer)

    def apply(self, layer: Weighted, x: Tensor) -> Tensor:
        return self.own.apply(layer, x)

    def apply_gated(self, layer: Weighted, x: Tensor) -> Tensor:
        return self.own.apply_gated(layer, x)


class ExpertsDequantizedAtUse(ExpertsMethod):
    """As PlainExperts, of the encoding's values, with scales [E, outputs, 1] of w13 and w2."""

    def __init__(self, encoding: Encoding, moe: Callable[..., Tensor]) -> None:
        self.loading = EncodedLoading(encoding)
        self.moe = moe

    def allocate(self, layer: ExpertWeights, device: torch.device) -> None:
        values = self.loading.encoding.values_dtype
        count, hidden, width = layer.num_experts, layer.hidden, layer.width
        layer.w13 = parameter((count, 2 * width, hidden), values, device)
        layer.w2 = parameter((count, hidden, width), values, device)
        layer.w13_scales = parameter((count, 2 * width, 1), torch.float32, device)
        layer.w2_scales = parameter((count, hidden, 1), torch.float32, device)

    def destinations(self, layer: ExpertWeights) -> Iterator[Destination]:
        return self.loading.destinations(layer)

    def finish(self, layer: ExpertWeights) -> None:
        for piece, part in self.loading.decoded(layer):
            stored, scales = (
                (layer.w2, layer.w2_scales)
                if piece.prefix == "w2."
                else (layer.w13, layer.w13_scales)
            )
            rows = slice(piece.first, piece.first + piece.count)
            stored.data[piece.local_expert][rows].copy_(part.values)
            scales.data[piece.local_expert][rows].copy_(part.scales)

    def apply(self, layer: ExpertWeights, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        w13 = QuantizedPiece(layer.w13, layer.w13_scales).dequantized(x.dtype)
        w2 = QuantizedPiece(layer.w2, layer.w2_scales).dequantized(x.dtype)
        return self.moe(x, w13, w2, ids, weights, layer.act)
