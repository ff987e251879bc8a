"""The executor whose ranks run elsewhere: encodes requests, matches replies, revives errors."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vllm.distributed.place import Place
from vllm.errors import NotAvailable
from vllm.executor.base import ExecutorDied, StepHandle
from vllm.executor.control import Method, WorkerType
from vllm.executor.handshake import compare
from vllm.executor.rank import rank_main
from vllm.executor.ranks import Ranks
from vllm.executor.stopwatch import Stopwatch
from vllm.executor.watchdog import Awaited, Kind, Limits, Watchdog
from vllm.messages import functions
from vllm.messages.cache import KVCacheLayout
from vllm.messages.codec import decoder, encoder
from vllm.messages.facts import WorkerFacts
from vllm.messages.rank import (
    BindKVCache,
    Failed,
    FromRank,
    Invoke,
    Joined,
    Load,
    Loaded,
    Returned,
    RunStep,
    StepDone,
    ToRank,
    revive,
)
from vllm.messages.step import StepPlan, StepResult

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


_STARTS: Final = frozenset({Kind.START, Kind.WARM_UP})
_NEWS_S: Final = 1.0  # for the death of a rank to show after another has failed for it


class DistributedExecutor:
    """Sends every request to all ranks, each of which replies once. Used by one thread.

    A rank replies in the order of the requests, so that replies need no numbers; different ranks
    may be at different requests. While it waits, it looks at the ranks twice a second, so that it
    never waits for one that hangs.
    """

    def __init__(
        self,
        config: VllmConfig,
        worker_type: WorkerType,
        ranks: Ranks,
        places: Sequence[Place],
        limits: Limits | None = None,
    ) -> None:
        """`limits`: by default those of the environment."""
        assert [place.rank for place in places] == list(range(len(places))), places
        self.ranks = ranks
        self._places = places
        self._main = functools.partial(rank_main, worker_type, config)
        (self._driver,) = (place.rank for place in places if place.is_driver)
        self._unanswered: list[deque[_Pending]] = [deque() for _ in places]  # by rank
        limits = limits or Limits.read()
        self._stopwatch = Stopwatch(limits.tick_s)
        self._watchdog = Watchdog(limits)
        self._num_requests = 0
        self._dead: ExecutorDied | None = None
        self._encode: Callable[[ToRank], bytes] = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[FromRank] = decoder(FromRank)

    def start(self) -> list[WorkerFacts]:
        """Raises ConfigError if the ranks differ in settings; then none of them has loaded."""
        start = Awaited(Kind.START, -1)
        self.ranks.start(self._main, self._places, self._look)
        joined = self._expect(start).wait()
        compare([reply for reply in joined if isinstance(reply, Joined)])
        loaded = self._send(Load(), start).wait()
        return [reply.facts for reply in loaded if isinstance(reply, Loaded)]

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._send(BindKVCache(layout), Awaited(Kind.WARM_UP, -1)).wait()

    def submit(self, plan: StepPlan) -> StepHandle:
        return _SentStep(self._send(RunStep(plan), Awaited(Kind.STEP, plan.step)), self._driver)

    def call(self, method: Method, *args: Any) -> list[Any]:
        if any(map(callable, (method, *args))) and not functions.may_travel():
            raise NotAvailable(
                f"{method} with a function needs the model in this process; the ranks are others. "
                f"Use --distributed-executor-backend uni, or set {functions.LEAVE}=1, with which "
                "functions travel as pickles."
            )
        replies = self._send(Invoke(method, list(args)), Awaited(Kind.CALL, -1)).wait()
        return [reply.value for reply in replies if isinstance(reply, Returned)]

    def check_health(self) -> None:
        self.receive(timeout_s=0)
        if self._dead is not None:
            raise self._dead

    def stop(self) -> None:
        """End the ranks; may be called again. Steps still in flight are given up."""
        self._dead = self._dead or ExecutorDied("the executor was stopped")
        pending = [request for queue in self._unanswered for request in queue]
        # Ranks may wait for one that has failed; and one that starts hears nothing for long.
        if any(request.has_failed or request.awaited.kind in _STARTS for request in pending):
            self.ranks.kill()
        self.ranks.stop()

    def receive(self, timeout_s: float | None = None) -> None:
        """Take the replies that have come; waits for the first of them for a tick or `timeout_s`.

        Raises ExecutorDied if a rank is known to be gone, or to hang. A death that is found now is
        raised by the next call, so that replies which came before it are used first.
        """
        if self._dead is not None:
            raise self._dead
        try:
            tick_s = self._stopwatch.tick_s
            for rank, reply in self.ranks.ready(tick_s if timeout_s is None else timeout_s):
                self._unanswered[rank].popleft().add(rank, self._decoder.decode(reply))
            if self._stopwatch.is_due:
                self._look()
        except ExecutorDied as died:
            self._give_up(died)

    def hear_out(self, pending: _Pending) -> None:
        """Of a request that a rank has failed in, maybe for another that is gone.

        Raises ExecutorDied if one is: through sockets, a neighbour may be the first to notice.
        """
        until_s = time.monotonic() + _NEWS_S
        while pending.missing() and self._dead is None:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self.receive(left_s)
        if self._dead is not None:
            raise self._dead

    def _look(self) -> None:
        """Raises ExecutorDied if a rank hangs, or the oldest request has waited for too long."""
        lapse_s = self._stopwatch.lapse_s()
        states = self.ranks.states(lapse_s)
        open_ones = [queue[0] for queue in self._unanswered if queue]
        if open_ones:
            oldest = min(open_ones, key=lambda pending: pending.number)
            self._watchdog.look(oldest.number, oldest.awaited, oldest.missing(), states, lapse_s)

    def _give_up(self, died: ExecutorDied) -> None:
        self._dead = died
        self.ranks.kill()

    def _send(self, request: ToRank, awaited: Awaited) -> _Pending:
        if self._dead is not None:
            raise self._dead
        message = self._encode(request)
        try:
            self.ranks.put(message)
        except ExecutorDied as died:
            self._give_up(died)
            raise
        return self._expect(awaited)

    def _expect(self, awaited: Awaited) -> _Pending:
        self._num_requests += 1
        pending = _Pending(self, len(self._places), awaited, self._num_requests)
        for queue in self._unanswered:
            queue.append(pending)
        return pending


class _Pending:
    """The replies to one request."""

    def __init__(
        self, executor: DistributedExecutor, num_ranks: int, awaited: Awaited, number: int
    ) -> None:
        self.awaited = awaited
        self.number = number  # among the executor's requests
        self.has_failed = False
        self._executor = executor
        self._num_ranks = num_ranks
        self._replies: dict[int, FromRank] = {}  # by rank

    def add(self, rank: int, reply: FromRank) -> None:
        self._replies[rank] = reply
        self.has_failed |= isinstance(reply, Failed)

    def missing(self) -> set[int]:
        """Ranks that have not answered."""
        return set(range(self._num_ranks)) - self._replies.keys()

    def wait(self) -> list[FromRank]:
        """The replies of all ranks, by rank.

        Raises ExecutorDied if a rank is gone, and a rank's own error as soon as that is known:
        where one has failed, the others may wait for it without end.
        """
        while len(self._replies) < self._num_ranks and not self.has_failed:
            self._executor.receive()
        if any(isinstance(reply, Failed) and reply.may_follow for reply in self._replies.values()):
            self._executor.hear_out(self)
        for rank, reply in sorted(self._replies.items()):
            if isinstance(reply, Failed):
                raise revive(reply, rank, is_alone=self._num_ranks == 1)
        return [self._replies[rank] for rank in range(self._num_ranks)]


class _SentStep:
    """A step sent to the ranks. The driver's reply has the values, the others' are empty."""

    def __init__(self, pending: _Pending, driver: int) -> None:
        self._pending = pending
        self._driver = driver

    def result(self) -> StepResult:
        reply = self._pending.wait()[self._driver]
        assert isinstance(reply, StepDone) and reply.result is not None, reply
        return reply.result
