"""How weights are stored and multiplied: the place of packing and of quantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from vllm.layers.linear import GatedLinear, Linear, Shard, Weighted
from vllm.layers.weights import Slot, Target

if TYPE_CHECKING:
    from vllm.layers.context import ModelContext
    from vllm.layers.moe import Experts
    from vllm.ops.registry import Ops


class LinearMethod(ABC):
    """How the weights of a projection are stored and multiplied: the place of quantization."""

    @abstractmethod
    def create(self, layer: Linear, context: ModelContext) -> None:
        """Give `layer` its parameters."""

    @abstractmethod
    def allocate(
        self, layer: Weighted, num_outputs: int, num_inputs: int, context: ModelContext
    ) -> None:
        """Give `layer` the weight, uninitialised, and its sizes."""

    @abstractmethod
    def target(self, layer: Weighted, first: int, count: int) -> Target:
        """Takes [count, num_inputs], the weight of outputs [first, first + count)."""

    @abstractmethod
    def slots(self, layer: Linear) -> Iterator[Slot]:
        """Where the checkpoint tensors of `layer` go."""

    def finish(self, layer: Weighted) -> None:
        """Called once, after loading."""

    @abstractmethod
    def apply(self, layer: Weighted, x: Tensor, wide: bool = False) -> Tensor:
        """x [T, num_inputs] -> [T, num_outputs], of x's dtype or, if `wide`, float32."""

    def greatest(self, layer: Weighted, x: Tensor) -> Tensor | None:
        """What `ops.greatest` says of the wide product, [T] int32; None: it takes that product."""
        return None

    @abstractmethod
    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        """Rows `ids` [T] of the weight -> [T, num_inputs]."""

    def apply_gated(self, layer: GatedLinear, x: Tensor) -> Tensor:
        """x [T, num_inputs] -> act(gate) * up [T, num_outputs / 2]."""
        return layer.activate(self.apply(layer, x))


class Unquantized(LinearMethod):
    """Parts stacked, in the model's dtype: weight [out_local, in_local], bias [out_local]."""

    def create(self, layer: Linear, context: ModelContext) -> None:
        out = sum(layer.widths)
        self.allocate(layer, out, layer.shape.local_inputs(layer.shard), context)
        layer.bias = context.parameter(out) if layer.shape.bias else None

    def allocate(
        self, layer: Weighted, num_outputs: int, num_inputs: int, context: ModelContext
    ) -> None:
        layer.num_outputs, layer.num_inputs = num_outputs, num_inputs
        layer.weight = context.parameter(num_outputs, num_inputs)

    def target(self, layer: Weighted, first: int, count: int) -> Target:
        return layer.weight.data[first : first + count]

    def slots(self, layer: Linear) -> Iterator[Slot]:
        shape, info = layer.shape, layer.shard
        first = 0
        for part, width in zip(shape.parts, layer.widths, strict=True):
            dim, start = -1, 0
            if info.size > 1 and shape.shard is Shard.COLUMN:
                dim, start = 0, info.span(part.out, part.unit)[0]
            elif info.size > 1 and shape.shard is Shard.ROW:
                dim, start = 1, info.span(shape.inputs)[0]
            full, weight = (part.out, shape.inputs), self.target(layer, first, width)
            yield Slot("weight", weight, full, part.name, dim=dim, start=start)
            if layer.bias is not None:
                bias_dim = dim if shape.shard is Shard.COLUMN else -1
                bias = layer.bias.data[first : first + width]
                yield Slot("bias", bias, full[:1], part.name, dim=bias_dim, start=start)
            first += width

    def apply(self, layer: Weighted, x: Tensor, wide: bool = False) -> Tensor:
        out = F.linear(x, layer.weight, layer.bias)
        return out.float() if wide else out

    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        return F.embedding(ids, layer.weight)


class ExpertsMethod:
    """How the weights of experts are stored and multiplied: here stacked, in the model's dtype."""

    def __init__(self, ops: Ops) -> None:
        self.moe = ops.moe

    def create(
        self, layer: Experts, num_experts: int, hidden: int, width: int, context: ModelContext
    ) -> None:
        """Give `layer` its parameters, uninitialised: experts of `width` outputs each."""
        layer.w13 = context.parameter(num_experts, 2 * width, hidden)
        layer.w2 = context.parameter(num_experts, hidden, width)

    def targets(self, layer: Experts, expert: int) -> tuple[Target, Target, Target]:
        """Of gate [width, hidden], up [width, hidden] and down [hidden, width]."""
        gate, up = layer.w13.data[expert].chunk(2)
        return gate, up, layer.w2.data[expert]

    def finish(self, layer: Experts) -> None:
        """Called once, after loading."""

    def apply(self, layer: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] -> [T, H]."""
        out: Tensor = self.moe(x, layer.w13, layer.w2, ids, weights, layer.act)
        return out
