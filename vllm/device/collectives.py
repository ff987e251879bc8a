"""What ranks compute together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from vllm.messages.step import NO_TOKEN, Int32Array


class Collectives(ABC):
    """The ranks that share a model's layers; every rank calls the same methods in the same order.

    Results are equal to the bit on all ranks that get the same ones. Rows are along dimension 0.
    """

    rank: int
    size: int

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`, whose memory it may take."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Every rank's `x`, of one shape, in order of rank along the last dimension."""

    def gather_rows(self, x: Tensor) -> Tensor:
        """Every rank's rows, in order of rank.   [R, ...] -> [size * R, ...]"""
        return self.gather(x.reshape(1, x.numel())).view(self.size * len(x), *x.shape[1:])

    def show(self, values: Int32Array) -> Int32Array:
        """Every rank's `values`, exchanged on the host.   [N] -> [size, N]"""
        shown = self.gather(torch.from_numpy(values).view(1, -1))
        return cast(Int32Array, shown.view(self.size, -1).numpy())

    @abstractmethod
    def scatter_sum(self, x: Tensor) -> Tensor:
        """This rank's rows of the sum of every rank's `x`.   [size * R, ...] -> [R, ...]"""

    @abstractmethod
    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows from every rank, in order of rank.   [sum(sent), ...] -> [sum(received), ...]

        `sent` are the rows of `x` for each rank, in order; `received` those that each has for this
        one.
        """

    @abstractmethod
    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The `x` of rank `source`; other ranks give one of its shape and dtype."""

    def greatest(self, values: Tensor, ids: Tensor) -> Tensor:
        """The id beside the greatest of every rank's values, of equals that of the first rank.

        values [S] float32, ids [S] int32 -> [S] int32. NO_TOKEN for a row with NaN, or with nothing
        but -inf.
        """
        # As floats, since a collective has one type: exact below 2^24.
        pairs = self.gather(torch.stack((values, ids.to(values.dtype)), dim=1))
        values, ids = pairs.view(-1, self.size, 2).unbind(dim=2)
        best, rank = values.max(dim=1)  # of equals the first, and NaN of any
        token_ids = ids.gather(1, rank.unsqueeze(1)).squeeze(1).int()
        return token_ids.masked_fill(~(best > -torch.inf), NO_TOKEN)

    def steps_begin(self) -> None:
        """All ranks have started. Before, one may wait for as long as another loads."""

    def where(self) -> str:
        """Which collective this rank waits in, and for whom; "" if in none. Any thread may ask."""
        return ""

    def sum_of(self, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The sum of every rank's compute(x), of which each row depends on that row of `x` alone.

        So it may be computed and summed in pieces.
        """
        return self.sum(compute(x))

    def agreed(self, value: float) -> float:
        """The greatest of every rank's `value`: for decisions that all ranks must take alike."""
        return float(self.gather(torch.tensor([value], dtype=torch.float64)).max())

    def least(self, value: float) -> float:
        """The least of every rank's `value`."""
        return -self.agreed(-value)


class Alone(Collectives):
    """One rank: what it has is everything."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x

    def scatter_sum(self, x: Tensor) -> Tensor:
        return x

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        return x

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        return x

    def agreed(self, value: float) -> float:
        return value


class Imagined(Alone):
    """The first of so many ranks: what a model would be for it, without the others."""

    def __init__(self, size: int) -> None:
        self.size = size
