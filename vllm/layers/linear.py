"""Linear layers: one class for every projection; what differs is a `LinearShape`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from torch import Tensor

from vllm.layers.activation import gated, gated_name
from vllm.layers.context import ModelContext
from vllm.layers.shapes import LinearShape, Part, Piece, Shard
from vllm.layers.weighted import Weighted
from vllm.layers.weights import ELSEWHERE, Destination

WIDTH: Final = "intermediate columns"  # of a feed-forward block, in errors


class Linear(Weighted):
    """y = x W^T + b over this rank's shard.   x: [T, in_local] -> [T, out_local], dtype of x

    Outputs of a row-parallel projection are those of the whole, unless it is partial.
    """

    def __init__(self, shape: LinearShape, context: ModelContext) -> None:
        widths = shape.widths(context.shard)
        super().__init__(sum(widths), shape.local_inputs(context.shard), context.dtype)
        self.shape = shape
        self.shard = context.shard
        self.widths = widths
        is_row = shape.shard is Shard.ROW
        # What every rank added would be summed.
        self.has_bias = shape.bias and not (is_row and context.shard.rank > 0)
        self.complete = context.tp.sum_of if is_row and not shape.partial else _alone

    def pieces(self) -> Iterator[Piece]:
        return self.shape.pieces(self.shard)

    def destinations(self) -> Iterator[Destination]:
        yield from super().destinations()
        for piece in self.pieces() if self.shape.bias else ():
            target = partial(self.method.bias_target, self, piece.first, piece.count)
            yield Destination(
                "bias",
                target if self.has_bias else ELSEWHERE,
                piece.shape[:1],
                piece.part,
                share=piece.share.along(0),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.complete(self._product, x)

    def _product(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)


def _alone(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return compute(x)


class GatedLinear(Linear):
    """act(gate(x)) * up(x) over this rank's share.   x: [T, in] -> [T, intermediate_local]"""

    is_gated = True

    def __init__(
        self, inputs: int, intermediate: int, act: str, context: ModelContext, bias: bool = False
    ) -> None:
        parts = (Part("gate", intermediate, what=WIDTH), Part("up", intermediate, what=WIDTH))
        super().__init__(LinearShape(inputs, parts, Shard.COLUMN, bias), context)
        self.act = gated_name(act)
        self.activate = gated(act, context.ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply_gated(self, x)
