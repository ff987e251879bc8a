"""Shapes of projections, and how the ranks of a tensor-parallel group share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


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
class Piece:
    """One matrix of the checkpoint within a stored weight.

    `shape` is [outputs, inputs] in the checkpoint. A rank keeps [start, start + length) of it along
    `dim` (-1: all of it), as the outputs [first, first + count) of what it stores.
    """

    shape: tuple[int, int]
    first: int
    count: int
    part: str = ""
    expert: int = -1
    prefix: str = ""  # of the names of the parameters: "w13."
    dim: int = -1
    start: int = 0
    length: int = 0

    @property
    def local_shape(self) -> tuple[int, int]:
        """[outputs, inputs] of this rank."""
        outputs, inputs = self.shape
        if self.dim == 0:
            return self.length, inputs
        return (outputs, self.length) if self.dim == 1 else self.shape


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
        """Inputs that a rank multiplies."""
        return info.span(self.inputs)[1] if self.shard is Shard.ROW else self.inputs

    def pieces(self, info: ShardInfo) -> Iterator[Piece]:
        """The parts, in order, as a rank stores them."""
        first = 0
        for part, width in zip(self.parts, self.widths(info), strict=True):
            dim, start, length = -1, 0, 0
            if info.size > 1 and self.shard is Shard.COLUMN:
                dim, (start, length) = 0, info.span(part.out, part.unit)
            elif info.size > 1 and self.shard is Shard.ROW:
                dim, (start, length) = 1, info.span(self.inputs)
            shape = (part.out, self.inputs)
            yield Piece(shape, first, width, part.name, dim=dim, start=start, length=length)
            first += width


def single(inputs: int, out: int, shard: Shard = Shard.NONE, bias: bool = False) -> LinearShape:
    """A projection that is not fused: its one part has no name."""
    return LinearShape(inputs, (Part("", out),), shard, bias)
