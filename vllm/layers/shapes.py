"""Shapes of projections, and how the ranks of a tensor-parallel group share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from torch import Tensor

from vllm.errors import ConfigError

ROWS_TOGETHER: Final = 64  # rows of a vocabulary that kernels take at a time


class UnevenShares(ConfigError):
    """Something of a model cannot be shared by so many ranks; which numbers can, is not said."""


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

    def span(
        self, width: int, unit: int = 1, what: str = "columns", repeats: bool = False
    ) -> tuple[int, int]:
        """(start, length) of this rank's share of `width`, cut at multiples of `unit`.

        With `repeats`, neighbouring ranks hold the same unit where there are fewer than ranks.
        Raises UnevenShares, which calls the units `what`.
        """
        units = width // unit
        divides = units % self.size == 0 or (repeats and self.size % units == 0)
        if not divides:
            raise UnevenShares(
                f"--tensor-parallel-size {self.size} does not divide the {units} {what} of this "
                "model."
            )
        if units % self.size == 0:
            length = units // self.size * unit
            return self.rank * length, length
        return self.rank * units // self.size * unit, unit


@dataclass(frozen=True, slots=True)
class Part:
    """Some outputs of a fused projection: one tensor of the checkpoint."""

    name: str
    out: int
    unit: int = 1  # outputs that stay together: the head size
    what: str = "columns"  # the units, in errors
    repeats: bool = False  # ranks may hold the same unit


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank keeps of a tensor: [start, start + length) along `dim`, or all if that is -1."""

    dim: int = -1
    start: int = 0
    length: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """A view of the share."""
        return tensor if self.dim < 0 else tensor.narrow(self.dim, self.start, self.length)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the share of a tensor of shape `whole`."""
        if self.dim < 0:
            return whole
        return (*whole[: self.dim], self.length, *whole[self.dim + 1 :])

    def whole(self, local: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor of which each of `size` ranks has a share of shape `local`."""
        if self.dim < 0:
            return local
        return (*local[: self.dim], local[self.dim] * size, *local[self.dim + 1 :])

    def along(self, dim: int) -> Share:
        """The same share of a tensor that has dimension `dim` only; all of it if that is whole."""
        return self if self.dim == dim else EVERYTHING


EVERYTHING: Final = Share()


@dataclass(frozen=True, slots=True)
class Piece:
    """One matrix of the checkpoint within a stored weight.

    `shape` is [outputs, inputs] in the checkpoint. A rank keeps a `share` of it, as the outputs
    [first, first + count) of what it stores; none if `count` is 0.
    """

    shape: tuple[int, int]
    first: int
    count: int
    part: str = ""
    expert: int = -1  # in the layer
    prefix: str = ""  # of the names of the parameters: "w13."
    share: Share = EVERYTHING
    local_expert: int = -1  # in what the rank stores

    @property
    def num_inputs(self) -> int:
        """Inputs that this rank keeps."""
        return self.share.shape(self.shape)[1]


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A projection over the whole group. Parts are stacked in order along the outputs.

    Of a row-parallel projection that is `partial` the outputs stay partial sums, which its block
    completes together with others.
    """

    inputs: int
    parts: tuple[Part, ...]
    shard: Shard
    bias: bool = False
    partial: bool = False

    def widths(self, info: ShardInfo) -> list[int]:
        """Outputs of each part that a rank computes."""
        if self.shard is not Shard.COLUMN:
            return [part.out for part in self.parts]
        return [info.span(part.out, part.unit, part.what, part.repeats)[1] for part in self.parts]

    def local_inputs(self, info: ShardInfo) -> int:
        """Inputs that a rank multiplies."""
        return info.span(self.inputs)[1] if self.shard is Shard.ROW else self.inputs

    def pieces(self, info: ShardInfo) -> Iterator[Piece]:
        """The parts, in order, as a rank stores them."""
        first = 0
        for part, width in zip(self.parts, self.widths(info), strict=True):
            share = EVERYTHING
            if info.size > 1 and self.shard is Shard.COLUMN:
                share = Share(0, *info.span(part.out, part.unit, part.what, part.repeats))
            elif info.size > 1 and self.shard is Shard.ROW:
                share = Share(1, *info.span(self.inputs))
            yield Piece((part.out, self.inputs), first, width, part.name, share=share)
            first += width


def unfused(
    inputs: int, out: int, shard: Shard = Shard.NONE, bias: bool = False, partial: bool = False
) -> LinearShape:
    """A projection that is not fused: its one part has no name."""
    return LinearShape(inputs, (Part("", out),), shard, bias, partial)


@dataclass(frozen=True, slots=True)
class VocabularyShare:
    """The rows of a vocabulary that a rank has: [first, first + present), padded to `length`."""

    rows: int  # of the whole vocabulary
    first: int
    present: int
    length: int

    @classmethod
    def of(cls, rows: int, info: ShardInfo) -> VocabularyShare:
        """Ranks have equally many; the last may have padding. One rank has no padding."""
        length = rows if info.size == 1 else _ceil_to(-(-rows // info.size), ROWS_TOGETHER)
        first = info.rank * length
        return cls(rows, first, min(max(rows - first, 0), length), length)

    def pieces(self, hidden: int) -> Iterator[Piece]:
        """The rows of this rank in the checkpoint's table [rows, hidden]; none if it has none."""
        share = Share(0, self.first, self.present)
        yield Piece((self.rows, hidden), 0, self.present, share=share)


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
