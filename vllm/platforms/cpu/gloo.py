"""Ranks that share no memory, or have no native code: they compute together through sockets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from vllm import envs
from vllm.device.collectives import Collectives
from vllm.distributed.groups import Group
from vllm.distributed.place import Place

_INTERFACE: Final = "GLOO_SOCKET_IFNAME"
_SECONDS: Final = 1800  # gloo's own limit in torch.distributed


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


def connected(
    store: dist.Store, group: Group, limit: timedelta, address: str
) -> dist.ProcessGroupGloo:
    """The ranks that meet at `store`; others reach this one at `address`.

    Without an address, or where GLOO_SOCKET_IFNAME names an interface, gloo chooses.
    """
    if not address or envs.inherited(_INTERFACE):
        return dist.ProcessGroupGloo(store, group.rank, group.size, timeout=limit)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = limit
    return dist.ProcessGroupGloo(store, group.rank, group.size, options)


def limit_of(seconds: int) -> timedelta:
    """How long a rank waits for another; 0 seconds: as long as torch.distributed does."""
    return timedelta(seconds=seconds or _SECONDS)


def meeting(place: Place, limit: timedelta, name: str) -> dist.Store:
    """Where the ranks that give this `name` meet, among all that meet at `place.rendezvous`.

    That is a path to an empty file, or host:port at which rank 0 listens.
    """
    return dist.PrefixStore(name, _store(place, limit))


def _store(place: Place, limit: timedelta) -> dist.Store:
    if place.rendezvous.startswith("/"):
        return dist.FileStore(place.rendezvous, place.world_size)
    host, _, port = place.rendezvous.rpartition(":")
    # Rank 0 listens once, however many groups it is in.
    return dist.TCPStore(
        host,
        int(port),
        place.world_size,
        is_master=place.rank == 0,
        timeout=limit,
        wait_for_workers=False,
        multi_tenant=True,
    )
