"""Ranks on Gaudis that compute together, through the plugin's HCCL."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vllm.device.collectives import Collectives
from vllm.distributed.place import Place
from vllm.platforms.hpu import bridge


class Hccl(Collectives):
    def __init__(self, place: Place) -> None:
        bridge.module("distributed.hccl")
        store = dist.FileStore(place.rendezvous, place.world_size)
        dist.init_process_group("hccl", store=store, rank=place.rank, world_size=place.world_size)
        self._host = dist.new_group(backend="gloo")
        self.rank, self.size = place.tp.rank, place.tp.size
        self._is_lazy = bridge.is_lazy()
        self._mark_step = bridge.module("core").mark_step

    def sum(self, x: Tensor) -> Tensor:
        if self._is_lazy:
            self._mark_step()
        dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out.view(self.size, *x.shape).movedim(0, -2).flatten(-2)

    def scatter_sum(self, x): raise NotImplementedError
    def exchange(self, x, sent, received): raise NotImplementedError
    def broadcast(self, x, source): raise NotImplementedError

    def agreed(self, value: float) -> float:
        x = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(x, dist.ReduceOp.MAX, self._host)
        return float(x)
