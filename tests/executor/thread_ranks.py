"""Ranks that are threads of the test's process, behind the same protocol as all others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.limits import HANG_S
from vllm.distributed.place import Place
from vllm.executor.base import ExecutorDied
from vllm.executor.pulse import RECORD_BYTES, Pulse, read
from vllm.executor.rank_state import RankState
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
        self._pulses: list[Pulse] = []
        self._records = bytearray()

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        self._records = bytearray(len(places) * RECORD_BYTES)
        self._pulses = [Pulse(self._records, place.rank) for place in places]
        for place in places:
            self._pulses[place.rank].start()
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

    def states(self, lapse_s: float) -> list[RankState]:
        return [read(self._records, rank, rank) for rank in range(len(self._pulses))]

    def kill(self) -> None:
        """A thread cannot be killed."""

    def stop(self) -> None:
        for pulse in self._pulses:
            pulse.stop()
        for channel in self._channels:
            channel.requests.put(None)
        for thread in self._threads:
            thread.join(HANG_S)
            assert not thread.is_alive(), thread.name

    def _run(self, main: RankMain, place: Place, channel: _ThreadChannel) -> None:
        try:
            main(place, channel, self._pulses[place.rank])
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
