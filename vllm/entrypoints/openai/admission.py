"""Which requests are taken: bounded by how many wait, and none once the server is ending."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from vllm.entrypoints.openai.transport.options import NO_LIMIT
from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats

RETRY_AFTER_S: Final = 1
_COUNT: Final = struct.Struct("=q")


class Unavailable(RuntimeError):
    """Not now, but maybe soon or elsewhere. HTTP 503 with Retry-After."""

    retry_after_s = RETRY_AFTER_S


class Overloaded(Unavailable):
    """As many requests wait as may."""


class Stopping(Unavailable):
    """The server ends."""


class Tally(Protocol):
    """Counts what is open at one API server, and knows the count of all."""

    def add(self, count: int) -> None: ...
    def own(self) -> int: ...
    def total(self) -> int: ...


class OwnTally:
    """Of an API server that is the only one."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, count: int) -> None:
        self.count += count

    def own(self) -> int:
        return self.count

    def total(self) -> int:
        return self.count


class SharedTally:
    """Several API servers: each writes its own count in a file that all have mapped."""

    def __init__(self, path: str, index: int, num_servers: int) -> None:
        """The file has `file_bytes(num_servers)` zeros at first."""
        self.at = index * _COUNT.size
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), num_servers * _COUNT.size)

    @staticmethod
    def file_bytes(num_servers: int) -> int:
        return num_servers * _COUNT.size

    def add(self, count: int) -> None:
        _COUNT.pack_into(self.memory, self.at, self.own() + count)

    def own(self) -> int:
        (count,) = _COUNT.unpack_from(self.memory, self.at)
        return int(count)

    def total(self) -> int:
        return sum(count for (count,) in _COUNT.iter_unpack(self.memory[:]))


class Tallies(NamedTuple):
    sequences: Tally
    requests: Tally  # of HTTP, each with one or more sequences


class Admission:
    """A StatLogger, for what engines say of their queues. Used on the event loop alone."""

    def __init__(
        self,
        max_waiting: int = NO_LIMIT,
        max_running: int = 0,
        tallies: Tallies | None = None,
        num_cores: int = 1,
    ) -> None:
        """`max_running`: sequences of the full batches of all cores; what is open beyond them
        waits."""
        self.max_waiting = max_waiting
        self.max_running = max_running
        self.tallies = tallies or Tallies(OwnTally(), OwnTally())
        self.queues = [0] * num_cores  # sequences waiting in each core, as of its last step
        self.is_closed = False

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.queues[core] = engine.num_waiting

    def close(self) -> None:
        """Take no more requests; those that are open go on."""
        self.is_closed = True

    def check(self, num_sequences: int = 1) -> None:
        """Raises Overloaded or Stopping: a request of so many sequences would be refused now."""
        if self.is_closed:
            raise Stopping("the server is shutting down; send the request to another one")
        if self.max_waiting == NO_LIMIT:
            return
        # Blocks can run out before the batch is full, which only the engine knows; what came
        # since its last step only we know. A core without a queue takes what comes, however many
        # wait for another one.
        excess = self.tallies.sequences.total() + num_sequences - self.max_running
        queued = sum(self.queues) + num_sequences if all(self.queues) else 0
        num_waiting = max(excess, queued)
        if num_waiting > self.max_waiting and num_waiting > 0:
            raise Overloaded(
                f"the server is busy: with this request {num_waiting} sequences would wait, and "
                f"{self.max_waiting} may (--max-waiting-requests); retry later"
            )

    @contextmanager
    def open(self, num_sequences: int) -> Iterator[None]:
        """Count sequences as open. Raises as `check`."""
        self.check(num_sequences)
        self.tallies.sequences.add(num_sequences)
        self.tallies.requests.add(1)
        try:
            # Another API server may have been admitted in between: the later one gives way.
            self.check(0)
            yield
        finally:
            self.tallies.sequences.add(-num_sequences)
            self.tallies.requests.add(-1)
