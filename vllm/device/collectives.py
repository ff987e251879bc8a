"""What ranks compute together."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Collectives(ABC):
    """The ranks that share a model's layers; every rank calls the same methods in the same order.

    Results are equal to the bit on all ranks.
    """

    rank: int
    size: int

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`, whose memory it may take."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Every rank's `x`, of one shape, in order of rank along the last dimension."""

    def agreed(self, value: float) -> float:
        """The greatest of every rank's `value`: for decisions that all ranks must take alike."""
        return float(self.gather(torch.tensor([value], dtype=torch.float32)).max())


class Alone(Collectives):
    """One rank: what it has is everything."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x

    def agreed(self, value: float) -> float:
        return value
