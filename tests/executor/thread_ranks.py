"""Ranks that are threads of the test's process, behind the same protocol as all others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.limits import HANG_S
from vllm.distributed.place import Place
from vllm.executor.base import ExecutorDied
from vllm.executor.ranks import ChannelClosed, RankMain


class Arrival(NamedTuple):
    rank: int
    reply: bytes | None  # None: the rank is gone


class RankEnds(BaseException):
    """Raised in a worker: no error of a request but the end of the rank."""


class ThreadRanks:
    """Implements Ranks; keeps the replies that were taken."""

    def __init__(self) -> None:
        self.replies: list[Arrival] = []
        self._channels: list[_ThreadChannel] = []
        self._threads: list[threading.Thread] = []
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()

    def start(self, main: RankMain, places: Sequence[Place]) -> None:
        for place in places:
            channel = _ThreadChannel(place.rank, self._arrivals)
            thread = threading.Thread(
                target=self._run, args=(main, place, channel), name=f"fake-rank-{place.rank}"
            )
            self._channels.append(channel)
            self._threads.append(thread)
            thread.start()

    def put(self, request: bytes) -> None:
        for channel in self._channels:
            channel.requests.put(request)

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        try:
            arrival = self._arrivals.get(timeout=HANG_S if timeout_s is None else timeout_s)
        except queue.Empty:
            assert timeout_s is not None, "the ranks never answered"
            return
        if arrival.reply is None:
            raise ExecutorDied(f"rank {arrival.rank} ended")
        self.replies.append(arrival)
        yield arrival.rank, arrival.reply

    def stop(self) -> None:
        for channel in self._channels:
            channel.requests.put(None)
        for thread in self._threads:
            thread.join(HANG_S)
            assert not thread.is_alive(), thread.name

    def _run(self, main: RankMain, place: Place, channel: _ThreadChannel) -> None:
        try:
            main(place, channel)
        except RankEnds:
            pass
        finally:
            self._arrivals.put(Arrival(place.rank, None))


class _ThreadChannel:
    def __init__(self, rank: int, arrivals: queue.SimpleQueue[Arrival]) -> None:
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rank = rank
        self._arrivals = arrivals

    def get(self) -> bytes:
        request = self.requests.get()
        if request is None:
            raise ChannelClosed
        return request

    def put(self, reply: bytes) -> None:
        self._arrivals.put(Arrival(self._rank, reply))
