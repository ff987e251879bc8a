"""Linear layers: one class for every projection; what differs is a `LinearShape`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from vllm.layers.activation import gated, gated_name
from vllm.layers.weights import Loadable, Slot

if TYPE_CHECKING:
    from vllm.layers.context import ModelContext
    from vllm.layers.methods import LinearMethod


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


class Weighted(Loadable):
    """A layer whose weight [num_outputs, num_inputs] a LinearMethod stores and multiplies."""

    is_gated: ClassVar[bool] = False  # outputs are gates, then as many that they gate
    method: LinearMethod
    weight: Tensor
    bias: Tensor | None
    num_outputs: int
    num_inputs: int

    def slots(self) -> Iterator[Slot]:
        whole = self.method.target(self, 0, self.num_outputs)
        yield Slot("weight", whole, (self.num_outputs, self.num_inputs))

    def finish(self) -> None:
        self.method.finish(self)


class Linear(Weighted):
    """y = x W^T + b over this rank's shard.   x: [T, in_local] -> [T, out_local], dtype of x"""

    def __init__(
        self, shape: LinearShape, context: ModelContext, method: LinearMethod | None = None
    ) -> None:
        """By default the method is the platform's."""
        super().__init__()
        self.shape = shape
        self.shard = context.shard
        self.widths = shape.widths(context.shard)
        self.method = method or context.linear_method
        self.method.create(self, context)

    def slots(self) -> Iterator[Slot]:
        return self.method.slots(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)


class GatedLinear(Linear):
    """act(gate(x)) * up(x) over this rank's share.   x: [T, in] -> [T, intermediate_local]"""

    is_gated = True

    def __init__(
        self, inputs: int, intermediate: int, act: str, context: ModelContext, bias: bool = False
    ) -> None:
        parts = (Part("gate", intermediate), Part("up", intermediate))
        super().__init__(LinearShape(inputs, parts, Shard.COLUMN, bias), context)
        self.act = gated_name(act)
        self.activate = gated(act, context.ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply_gated(self, x)
