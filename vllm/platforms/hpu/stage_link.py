"""Stages of a pipeline on Gaudis: hidden states travel over HCCL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vllm.device.stage_link import StageLink
from vllm.distributed.place import Place
from vllm.logger import init_logger
from vllm.platforms.hpu import bridge, world
from vllm.platforms.hpu.settings import CollectiveSettings

logger = init_logger(__name__)


class HcclLink(StageLink):
    """Sends and receives are queued on the device; each is a lazy graph of its own.

    So what the bridge compiles for one depends on the number of tokens alone, not on what the
    launches before and after it consist of.
    """

    def __init__(self, place: Place, settings: CollectiveSettings) -> None:
        """Meets all ranks, and has a first transfer from every stage to the next.

        Raises ConfigError, with which the start of every rank ends.
        """
        self._stage = place.pp.rank
        own = place.everyone.rank
        self._before, self._after = own - place.tp.size, own + place.tp.size
        self._sent: deque[tuple[Any, Tensor]] = deque()  # memory that HCCL may still read
        self._where = ""
        self._mark_step: Callable[[], None] = bridge.module("core").mark_step
        self._is_lazy = bridge.is_lazy()
        with world.meeting(place):
            world.join(place, settings)
            self._check(place)

    def send(self, hidden: Tensor) -> None:
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        self._end_graph()
        # The next replay of a captured graph overwrites `hidden`, and need not wait for HCCL.
        copy = hidden.clone()
        self._end_graph()
        work = dist.isend(copy, self._after)
        self._end_graph()
        self._sent.append((work, copy))

    def receive(self, out: Tensor) -> None:
        self._where = f"hidden states of stage {self._stage - 1}"
        try:
            self._end_graph()
            dist.recv(out, self._before)
            self._end_graph()
        finally:
            self._where = ""

    def where(self) -> str:
        return self._where

    def _check(self, place: Place) -> None:
        """Raises RuntimeError unless neighbours are connected: HCCL connects when it is used."""
        rank = torch.empty(1, device="hpu")
        if self._stage > 0:
            self.receive(rank)
            if (found := int(rank.item())) != self._before:
                raise RuntimeError(f"a first transfer came from rank {found}, not {self._before}")
        if self._stage < place.pp.size - 1:
            self.send(rank.fill_(place.everyone.rank))
        logger.info("Rank %d has met its neighbours in the pipeline through HCCL", place.rank)

    def _end_graph(self) -> None:
        if self._is_lazy:
            self._mark_step()
