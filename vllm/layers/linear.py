"""Linear layers: one class for every projection; what differs is a `LinearShape`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from vllm.layers.weights import Loadable, Slot

if TYPE_CHECKING:
    from vllm.layers.context import ModelContext


class Shard(Enum):
    """How ranks of a tensor-parallel group share a projection."""

    COLUMN = "column"  # each rank has some outputs
    ROW = "row"  # each rank has some inputs; outputs are partial sums
    NONE = "none"  # each rank has all


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """This rank's place in the group that shares a projection."""

    rank: int = 0
    size: int = 1

    def span(self, width: int, unit: int = 1) -> tuple[int, int]:
        """(start, length) of this rank's share of `width`, cut at multiples of `unit`.

        Where there are fewer units than ranks, neighbouring ranks hold the same one.
        """
        units = width // unit
        if units >= self.size:
            assert units % self.size == 0, (width, unit, self.size)
            length = units // self.size * unit
            return self.rank * length, length
        assert self.size % units == 0, (width, unit, self.size)
        return self.rank * units // self.size * unit, unit


@dataclass(frozen=True, slots=True)
class Part:
    """Some outputs of a fused projection: one tensor of the checkpoint."""

    name: str
    out: int
    unit: int = 1  # outputs that stay together: the head size


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A projection over the whole group. Parts are stacked in order along the outputs."""

    inputs: int
    parts: tuple[Part, ...]
    shard: Shard
    bias: bool = False

    def widths(self, info: ShardInfo) -> list[int]:
        """Outputs of each part that a rank computes."""
        if self.shard is not Shard.COLUMN:
            return [part.out for part in self.parts]
        return [info.span(part.out, part.unit)[1] for part in self.parts]

    def local_inputs(self, info: ShardInfo) -> int:
        return info.span(self.inputs)[1] if self.shard is Shard.ROW else self.inputs


def single(inputs: int, out: int, shard: Shard = Shard.NONE, bias: bool = False) -> LinearShape:
    """A projection that is not fused: its one part has no name."""
    return LinearShape(inputs, (Part("", out),), shard, bias)


class LinearMethod(ABC):
    """How the weights of a projection are stored and multiplied: the place of quantization."""

    @abstractmethod
    def create(self, layer: Linear, context: ModelContext) -> None:
        """Give `layer` its parameters."""

    @abstractmethod
    def slots(self, layer: Linear) -> Iterator[Slot]:
        """Where the checkpoint tensors of `layer` go."""

    def finish(self, layer: Linear) -> None:
        """Called once, after loading."""

    @abstractmethod
    def apply(self, layer: Linear, x: Tensor) -> Tensor: ...


class Linear(Loadable):
    """y = x W^T + b over this rank's shard.   x: [T, in_local] -> [T, out_local], dtype of x"""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, shape: LinearShape, context: ModelContext) -> None:
        super().__init__()
        self.shape = shape
        self.shard = context.shard
        self.widths = shape.widths(context.shard)
        self.method = context.linear_method
        self.method.create(self, context)

    def slots(self) -> Iterator[Slot]:
        return self.method.slots(self)

    def finish(self) -> None:
        self.method.finish(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)


class Unquantized(LinearMethod):
    """Parts stacked, in the model's dtype: weight [out_local, in_local], bias [out_local]."""

    def create(self, layer: Linear, context: ModelContext) -> None:
        out = sum(layer.widths)
        layer.weight = context.parameter(out, layer.shape.local_inputs(layer.shard))
        layer.bias = context.parameter(out) if layer.shape.bias else None

    def slots(self, layer: Linear) -> Iterator[Slot]:
        shape, info = layer.shape, layer.shard
        first = 0
        for part, width in zip(shape.parts, layer.widths, strict=True):
            dim, start = -1, 0
            if info.size > 1 and shape.shard is Shard.COLUMN:
                dim, start = 0, info.span(part.out, part.unit)[0]
            elif info.size > 1 and shape.shard is Shard.ROW:
                dim, start = 1, info.span(shape.inputs)[0]
            rows = slice(first, first + width)
            full = (part.out, shape.inputs)
            yield Slot("weight", layer.weight.data[rows], full, part.name, dim=dim, start=start)
            if layer.bias is not None:
                bias_dim = dim if shape.shard is Shard.COLUMN else -1
                target = layer.bias.data[rows]
                yield Slot("bias", target, full[:1], part.name, dim=bias_dim, start=start)
            first += width

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)
