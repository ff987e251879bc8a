"""How an executor reaches its ranks, wherever these run: bytes out to all, bytes back from each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from vllm.distributed.place import Place
from vllm.executor.pulse import Pulse
from vllm.executor.rank_state import RankState


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel(Protocol):
    """A rank's connection to its executor. `get` and `put` may be used by one thread each.

    Its maker closes it when the rank has returned; the end of the rank's process does the same.
    """

    def get(self) -> bytes:
        """Wait for the next request.

        Raises ChannelClosed if the executor has closed its end and every request was read.
        """
        ...

    def put(self, reply: bytes) -> None:
        """Raises ChannelClosed if the executor is gone."""
        ...


SetAside = Callable[
    [Sequence[int]], AbstractContextManager[Sequence[int]]
]  # as Platform.devices does


def no_devices(ranks: Sequence[int]) -> AbstractContextManager[Sequence[int]]:
    """For ranks that need none set aside."""
    return nullcontext([-1] * len(ranks))


RankMain = Callable[[Place, Channel, Pulse], None]  # serves until the executor closes its end


class Ranks(Protocol):
    """The ranks of one executor, seen from the executor. Used by one thread."""

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        """Start to run main(place, channel, pulse) for each place, by rank. `main` can be pickled.

        `on_wait` is called about twice a second while `put` or `ready` wait for a rank to go on
        with a message; what it raises they raise, and the ranks are of no use any more.
        """
        ...

    def put(self, request: bytes) -> None:
        """Send `request` to every rank. Raises ExecutorDied if a rank is gone."""
        ...

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        """Replies that have come, as (rank, reply); those of one rank in the order it sent them.

        Waits up to `timeout_s` (None: without a limit) for the first of them. Raises ExecutorDied,
        which names the rank and the reason, as soon as any rank is gone and has no reply left to
        be taken.
        """
        ...

    def states(self, lapse_s: float) -> list[RankState]:
        """What every rank does, by rank; `lapse_s` since the last look at them.

        Raises ExecutorDied if a rank gives no sign of life.
        """
        ...

    def kill(self) -> None:
        """End all ranks at once: some may wait without end for one that is gone. As `stop`, it may
        be called again."""
        ...

    def stop(self) -> None:
        """End all ranks, by force where needed. May be called again, and before `start`."""
        ...
