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

    def __init__(self, group: Group, path: str, limit_s: int = 0, spins: bool = True) -> None:
        """`path` is a file in memory that all ranks of `group` open, empty before the first did.

        Once steps begin, a rank waits for another for `limit_s` at most; 0: without a limit.
        `spins`: every rank has a processor of its own, on which it may look for the others.
        """
        self._limit_s = limit_s
        self.rank, self.size = group.rank, group.size
        fd = os.open(path, os.O_RDWR)
        try:
            self._ranks: int = torch.ops.vllm.join_ranks.default(fd, group.rank, group.size, spins)
        finally:
            os.close(fd)

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        torch.ops.vllm.sum_over_ranks.default(x, self._ranks)
        return x

    def gather(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.gather_over_ranks.default(x, self._ranks)
        return out

    def scatter_sum(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.scatter_sum_over_ranks.default(x, self._ranks)
        return out

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        out: Tensor = torch.ops.vllm.exchange_over_ranks.default(x, sent, received, self._ranks)
        return out

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        out: Tensor = torch.ops.vllm.broadcast_over_ranks.default(x, source, self._ranks)
        return out

    def greatest(self, values: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = torch.ops.vllm.greatest_over_ranks.default(values, ids, self._ranks)
        return out

    def steps_begin(self) -> None:
        torch.ops.vllm.limit_ranks.default(self._ranks, self._limit_s)

    def where(self) -> str:
        where: str = torch.ops.vllm.where_ranks.default(self._ranks)
        return where
