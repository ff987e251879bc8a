"""Ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tests.limits import HANG_S
from vllm.device.collectives import Collectives


class Meeting:
    """Where the ranks of a group show each other their tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=HANG_S)
        self.shown: list[Tensor] = [torch.empty(0)] * size


class InThread(Collectives):
    """A rank in a thread of its own."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, len(meeting.shown)
        self._meeting = meeting

    def sum(self, x: Tensor) -> Tensor:
        return self._together(x, lambda shown: torch.stack(shown).sum(0))

    def gather(self, x: Tensor) -> Tensor:
        return self._together(x, lambda shown: torch.cat(shown, dim=-1))

    def _together(self, x: Tensor, join: Callable[[list[Tensor]], Tensor]) -> Tensor:
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
