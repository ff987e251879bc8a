"""Ranks of one machine that compute together through shared memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vllm.device.collectives import Collectives
from vllm.distributed.groups import Group


class SharedMemory(Collectives):
    """Sums in rank order, with the same bits on every rank; see csrc/cpu/collectives.h."""

    def __init__(self, group: Group, path: str) -> None:
        """`path` is a file in memory that all ranks of `group` open, empty before the first did."""
        self.rank, self.size = group.rank, group.size
        fd = os.open(path, os.O_RDWR)
        try:
            self._ranks: int = torch.ops.vllm.join_ranks.default(fd, group.rank, group.size)
        finally:
            os.close(fd)

    def sum(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.sum_over_ranks.default(x, self._ranks)
        return out

    def gather(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.gather_over_ranks.default(x, self._ranks)
        return out

    def scatter_sum(self, x: Tensor) -> Tensor:
        return self.sum(x).chunk(self.size)[self.rank]

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        return self.gather(x).chunk(self.size, -1)[source]
