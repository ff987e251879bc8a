"""Stages of a pipeline on CPUs: hidden states travel over gloo, within and between machines."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from vllm.device.stage_link import StageLink
from vllm.distributed.groups import Group
from vllm.distributed.rendezvous import connected


class GlooLink(StageLink):
    """Sends without waiting; a stage is at most as many launches ahead as steps are in flight."""

    def __init__(self, store: dist.Store, pp: Group, limit: timedelta, address: str = "") -> None:
        """`store` is where the ranks at this position of every stage meet, and no others;
        `address` as in Place."""
        self._stage = pp.rank
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()  # memory that gloo still reads
        self._where = ""
        self._ranks = connected(store, pp, limit, address)
        # All are connected: before, one that leaves takes the others' connections with it.
        self._ranks.barrier().wait()

    def send(self, hidden: Tensor) -> None:
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        copy = hidden.clone()
        self._sent.append((self._ranks.send([copy], self._stage + 1, 0), copy))

    def receive(self, out: Tensor) -> None:
        self._where = f"hidden states of stage {self._stage - 1}"
        try:
            self._ranks.recv([out], self._stage - 1, 0).wait()
        finally:
            self._where = ""

    def where(self) -> str:
        return self._where
