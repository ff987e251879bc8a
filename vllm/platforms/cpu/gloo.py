"""Ranks that share no memory, or have no native code: they compute together through sockets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vllm.device.collectives import Collectives
from vllm.distributed.groups import Group
from vllm.distributed.rendezvous import connected


class Gloo(Collectives):
    """Sums in rank order, with the same bits on every rank, as those through shared memory.

    gloo's own sums have another order, which depends on the number of elements.
    """

    def __init__(
        self, store: dist.Store, group: Group, limit: timedelta, address: str = ""
    ) -> None:
        """`store` is where the ranks of `group` meet, and no others; `address` as in Place."""
        self.rank, self.size = group.rank, group.size
        self._where, self._num_calls = "", 0
        self._ranks = connected(store, group, limit, address)
        # All are connected: before, one that leaves takes the others' connections with it.
        self._ranks.barrier().wait()

    def sum(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        padded = flat.new_zeros(-(-flat.numel() // self.size) * self.size)
        padded[: flat.numel()] = flat
        return self.gather(self.scatter_sum(padded))[: flat.numel()].view(x.shape)

    def gather(self, x: Tensor) -> Tensor:
        shown = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        self._wait("gather", self._ranks.allgather([shown], [x.contiguous()]))
        return torch.cat(shown, dim=-1)

    def scatter_sum(self, x: Tensor) -> Tensor:
        rows = len(x) // self.size
        counts = [rows] * self.size
        shown = self.exchange(x, counts, counts).split(rows) if rows else [x]
        total = shown[0].float()
        for other in shown[1:]:
            total = total + other.float()
        return total.to(x.dtype)

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        rows = x.new_empty(sum(received), *x.shape[1:])
        counts = list(received), list(sent)
        self._wait("exchange", self._ranks.alltoall_base(rows, x.contiguous(), *counts))
        return rows

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = source, 0
        self._wait("broadcast", self._ranks.broadcast([out], options))
        return out

    def where(self) -> str:
        return self._where

    def _wait(self, name: str, work: dist.Work) -> None:
        self._num_calls += 1
        self._where = f"{name} {self._num_calls}"
        try:
            work.wait()
        finally:
            self._where = ""
