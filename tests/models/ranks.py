"""Ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tests.limits import HANG_S
from vllm.device.collectives import Collectives


class Meeting:
    """Where the ranks of a group show each other their tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=HANG_S)
        self.shown: list[Any] = [None] * size


class InThread(Collectives):
    """A rank in a thread of its own."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, len(meeting.shown)
        self._meeting = meeting

    def sum(self, x: Tensor) -> Tensor:
        return self._together(x, lambda shown: torch.stack(shown).sum(0))

    def gather(self, x: Tensor) -> Tensor:
        return self._together(x, lambda shown: torch.cat(shown, dim=-1))

    def scatter_sum(self, x: Tensor) -> Tensor:
        return self.sum(x).chunk(self.size)[self.rank]

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        shown = self._together(
            (x, sent),
            lambda shown: [rows.split(list(counts))[self.rank].clone() for rows, counts in shown],
        )
        assert [len(rows) for rows in shown] == list(received)
        return torch.cat(shown)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        return self._together(x, lambda shown: shown[source].clone())

    def _together(self, x: Any, join: Callable[[list[Any]], Any]) -> Any:
        self._meeting.shown[self.rank] = x
        self._meeting.barrier.wait()
        joined = join(self._meeting.shown)
        self._meeting.barrier.wait()  # before anybody shows the next
        return joined


def on_ranks(size: int, run: Callable[[InThread], object]) -> list[object]:
    """run(rank) of `size` ranks at once, by rank. Raises the error of the first that failed."""
    meeting = Meeting(size)

    def guarded(rank: int) -> object:
        try:
            return run(InThread(rank, meeting))
        except BaseException:
            meeting.barrier.abort()  # or the others would wait for this one
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
