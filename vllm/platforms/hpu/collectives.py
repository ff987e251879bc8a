"""Ranks on Gaudis that compute together: HCCL on the devices, gloo on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vllm.device.collectives import Collectives
from vllm.distributed.place import Place
from vllm.logger import init_logger
from vllm.messages.step import Int32Array
from vllm.platforms.hpu import bridge, world
from vllm.platforms.hpu.settings import CollectiveSettings

logger = init_logger(__name__)

# Renamed in torch 2.12, which warns of the old names; Dynamo traces both.
_gather_rows: Final = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_scatter_rows: Final = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


Meet = Callable[[Place, CollectiveSettings], world.MetRanks]


class Hccl(Collectives):
    """The ranks of a stage, of one copy of the model or of all.

    What they compute are ops of lazy graphs, of HPU graphs and of compiled ones as well.

    `agreed` and `least` stay on the host: they are asked for where the device's memory is short.
    """

    def __init__(
        self, place: Place, settings: CollectiveSettings, meet: Meet = world.stage_ranks
    ) -> None:
        """Meets all ranks; see `world.join`. `meet` says which of them these are.

        Raises ConfigError, with which the start of every rank ends.
        """
        self._settings = settings
        self._where, self._num_calls = "", 0
        self._mark_step: Callable[[], None] = bridge.module("core").mark_step
        self._is_lazy = bridge.is_lazy()
        with world.meeting(place):
            self._ranks = meet(place, settings)
            self.rank, self.size = self._ranks.group.rank, self._ranks.group.size
            group = self._ranks.devices or dist.distributed_c10d._get_default_group()
            self._group_name: str = group.group_name
            self._check()

    def where(self) -> str:
        return self._where

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._before_sum()
        self._call("sum", dist.all_reduce, x)
        return x

    def begin_sum(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin `sum`; the result waits for it."""
        x = x.contiguous()
        if torch.compiler.is_compiling():
            return self._begin_traced_sum(x)
        self._before_sum()
        work = dist.all_reduce(x, group=self._ranks.devices, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return x

        return wait

    def sum_of(self, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        settings = self._settings
        if settings.row_chunks == 1 or x.shape[0] < settings.row_chunk_threshold:
            return self.sum(compute(x))
        sums = [self.begin_sum(compute(rows)) for rows in x.chunk(settings.row_chunks)]
        return torch.cat([wait() for wait in sums])

    def gather(self, x: Tensor) -> Tensor:
        # Rows of all ranks below each other: the form that can be traced.
        rows = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        self._call("gather", _gather_rows, rows, x.contiguous())
        return rows.view(self.size, *x.shape).movedim(0, -2).flatten(-2)

    def gather_rows(self, x: Tensor) -> Tensor:
        rows = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        self._call("gather", _gather_rows, rows, x.contiguous())
        return rows

    def show(self, values: Int32Array) -> Int32Array:
        own = torch.from_numpy(values)
        shown = [torch.empty_like(own) for _ in range(self.size)]
        self._told("exchange on the host", lambda: self._gather_on_host(shown, own))
        return cast(Int32Array, torch.stack(shown).numpy())

    def _gather_on_host(self, shown: list[Tensor], own: Tensor) -> None:
        self._ranks.host.allgather([shown], [own]).wait()

    def scatter_sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        self._before_sum()
        # HCCL takes two dimensions.
        self._call("scattered sum", _scatter_rows, out.view(len(out), -1), x.view(len(x), -1))
        return out

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        out = x.new_empty((sum(received), *x.shape[1:]))
        counts = list(received), list(sent)
        self._call("exchange", dist.all_to_all_single, out, x.contiguous(), *counts)
        return out

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        x = x.contiguous()
        self._call("broadcast", dist.broadcast, x, self._ranks.members[source])
        return x

    def agreed(self, value: float) -> float:
        greatest = torch.tensor([value], dtype=torch.float64)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        self._told("agreement", lambda: self._ranks.host.allreduce([greatest], options).wait())
        return float(greatest)

    def _call(self, name: str, collective: Callable[..., object], *args: object) -> None:
        if torch.compiler.is_compiling():
            collective(*args, group=self._ranks.devices)
        else:
            self._told(name, partial(collective, *args, group=self._ranks.devices))

    def _told(self, name: str, collective: Callable[[], object]) -> None:
        """`where` tells of it while the host waits, or hands it over; devices wait unseen."""
        self._num_calls += 1
        self._where = f"{name} {self._num_calls}"
        try:
            collective()
        finally:
            self._where = ""

    def _check(self) -> None:
        """Raises RuntimeError unless all ranks are in one group: HCCL connects when it is used."""
        found = int(self.sum(torch.ones(1, device="hpu")).item())
        if found != self.size:
            raise RuntimeError(f"a first sum of ones counted {found} of them")
        logger.info("Rank %d of %d has met the others through HCCL", self.rank, self.size)

    def _before_sum(self) -> None:
        # The bridge can mix up a sum and what comes before it in one lazy graph.
        if self._is_lazy:
            self._mark_step()

    def _begin_traced_sum(self, x: Tensor) -> Callable[[], Tensor]:
        """As nodes of the graph: where `wait` is called, not where the sum begins, it is waited."""
        total = torch.ops._c10d_functional.all_reduce.default(x, "sum", self._group_name)

        def wait() -> Tensor:
            out: Tensor = torch.ops._c10d_functional.wait_tensor.default(total)
            return out

        return wait
