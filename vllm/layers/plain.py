"""Weights as they are: in the model's dtype, multiplied by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.layers.methods import ExpertsMethod, ExpertWeights
from vllm.layers.shapes import Piece
from vllm.layers.weighted import TableMethod, Weighted
from vllm.layers.weights import ELSEWHERE, Destination, Target, parameter


def destination(piece: Piece, open_target: Callable[[], Target]) -> Destination:
    """The place of a piece that is one plain tensor of the checkpoint."""
    return Destination(
        f"{piece.prefix}weight",
        open_target if piece.count else ELSEWHERE,
        piece.shape,
        piece.part,
        piece.expert,
        share=piece.share,
    )


class Plain(TableMethod):
    """Pieces stacked: weight [num_outputs, num_inputs]."""

    def allocate(self, layer: Weighted, device: torch.device) -> None:
        layer.weight = parameter((layer.num_outputs, layer.num_inputs), layer.dtype, device)
        if layer.has_padding:
            layer.weight.data.zero_()

    def target(self, layer: Weighted, piece: Piece) -> Target:
        """What takes `piece`, [count, num_inputs] of any plain dtype."""
        return layer.weight.data[piece.first : piece.first + piece.count]

    def destinations(self, layer: Weighted) -> Iterator[Destination]:
        for piece in layer.pieces():
            yield destination(piece, partial(self.target, layer, piece))

    def apply(self, layer: Weighted, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)

    def apply_gated(self, layer: Weighted, x: Tensor) -> Tensor:
        return layer.activate(self.apply(layer, x))

    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        return F.embedding(ids, layer.weight)


class GivenToOwner(Plain):
    """Holds nothing: what was loaded is given to `take`, [num_outputs, num_inputs], and dropped.

    For layers whose owner keeps their weight in another form. They cannot be applied.
    """

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        self._take = take

    def allocate(self, layer: Weighted, device: torch.device) -> None:
        """Nothing: memory is taken while the layer is filled."""

    def target(self, layer: Weighted, piece: Piece) -> Target:
        shape = (layer.num_outputs, layer.num_inputs)
        staged = layer.stage("weight", shape, layer.dtype, layer.device)
        return staged[piece.first : piece.first + piece.count]

    def finish(self, layer: Weighted) -> None:
        self._take(layer.unstage("weight"))


class PlainExperts(ExpertsMethod):
    """w13 [E, 2 * width, hidden], gates before ups, and w2 [E, hidden, width]."""

    def __init__(self, moe: Callable[..., Tensor]) -> None:
        """`moe` is the op of that name (see vllm.ops.moe)."""
        self.moe = moe

    def allocate(self, layer: ExpertWeights, device: torch.device) -> None:
        count, hidden, width = layer.num_experts, layer.hidden, layer.width
        layer.w13 = parameter((count, 2 * width, hidden), layer.dtype, device)
        layer.w2 = parameter((count, hidden, width), layer.dtype, device)

    def target(self, layer: ExpertWeights, piece: Piece) -> Target:
        """What takes `piece`, which has its local shape and any plain dtype."""
        stored = layer.w2 if piece.prefix == "w2." else layer.w13
        return stored.data[piece.local_expert][piece.first : piece.first + piece.count]

    def destinations(self, layer: ExpertWeights) -> Iterator[Destination]:
        for piece in layer.pieces():
            yield destination(piece, partial(self.target, layer, piece))

    def apply(self, layer: ExpertWeights, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return self.moe(x, layer.w13, layer.w2, ids, weights, layer.act)
