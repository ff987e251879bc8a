"""The executor whose ranks are processes: plans go out and results come back over shared memory."""

from __future__ import annotations

import multiprocessing
import select
import signal
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

import msgspec

from vllm.distributed.groups import Group
from vllm.errors import NotAvailable
from vllm.executor.base import ExecutorDied, StepHandle
from vllm.executor.control import Method, WorkerType
from vllm.executor.rank import rank_main
from vllm.executor.shm_queue import BroadcastReader, QueueClosed, broadcast_queue
from vllm.messages import functions
from vllm.messages.cache import KVCacheLayout
from vllm.messages.codec import decoder, encoder
from vllm.messages.facts import WorkerFacts
from vllm.messages.rank import (
    BindKVCache,
    Failed,
    FromRank,
    Invoke,
    Loaded,
    Returned,
    RunStep,
    StepDone,
    ToRank,
    revive,
)
from vllm.messages.step import StepPlan, StepResult
from vllm.utils.spawning import undisturbed

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

_PATIENCE_S = 5.0  # for a rank to end by itself before it is terminated, and then killed


class PendingReply:
    """The replies of all ranks to one request; those of earlier requests come first."""

    def __init__(self, executor: MultiProcessExecutor) -> None:
        self._executor = executor
        self._replies: list[FromRank] | None = None

    def complete(self, replies: list[FromRank]) -> None:
        self._replies = replies

    def wait(self) -> list[FromRank]:
        """By rank. Raises ExecutorDied, or the error of the lowest rank that failed."""
        while self._replies is None:
            self._executor.receive()
        for rank, reply in enumerate(self._replies):
            if isinstance(reply, Failed):
                raise revive(reply, rank)
        return self._replies


class ProcessStep:
    """A step sent to the ranks. Rank 0's result counts; the others agree with it."""

    def __init__(self, pending: PendingReply) -> None:
        self._pending = pending

    def result(self) -> StepResult:
        reply = self._pending.wait()[0]
        assert isinstance(reply, StepDone), reply
        return reply.result


class MultiProcessExecutor:
    """Runs every rank in a spawned process. Used by one thread.

    The process that starts ranks must not be daemonic: Python forbids such a process children.
    """

    def __init__(self, config: VllmConfig, num_ranks: int, worker_type: WorkerType) -> None:
        self._config = config
        self._num_ranks = num_ranks
        self._worker_type = worker_type
        self._processes: list[SpawnProcess] = []
        self._replies: list[BroadcastReader] = []
        self._pending: deque[PendingReply] = deque()
        self._dead: ExecutorDied | None = None
        self._encode: Callable[[ToRank], bytes] = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[FromRank] = decoder(FromRank)

    def start(self) -> list[WorkerFacts]:
        self._requests, request_readers = broadcast_queue(self._num_ranks)
        context = multiprocessing.get_context("spawn")
        for rank, requests in enumerate(request_readers):
            reply_writer, (replies,) = broadcast_queue(1)
            group = Group(rank, self._num_ranks)
            process = context.Process(
                target=rank_main,
                args=(self._worker_type, self._config, group, requests, reply_writer),
                name=f"vllm-rank-{rank}",
                daemon=True,
            )
            with undisturbed():
                process.start()
            # Only the rank may hold these, or its death would not show.
            requests.close()
            reply_writer.close()
            self._processes.append(process)
            self._replies.append(replies)
        loaded = self._expect().wait()
        return [reply.facts for reply in loaded if isinstance(reply, Loaded)]

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._send(BindKVCache(layout)).wait()

    def submit(self, plan: StepPlan) -> StepHandle:
        return ProcessStep(self._send(RunStep(plan)))

    def call(self, method: Method, *args: Any) -> list[Any]:
        if any(map(callable, (method, *args))) and not functions.may_travel():
            raise NotAvailable(
                f"{method} with a function needs the model in this process; the ranks are others. "
                f"Use --distributed-executor-backend uni, or set {functions.LEAVE}=1, with which "
                "functions travel as pickles."
            )
        replies = self._send(Invoke(method, list(args))).wait()
        return [reply.value for reply in replies if isinstance(reply, Returned)]

    def check_health(self) -> None:
        if self._dead is not None:
            raise self._dead
        for rank, process in enumerate(self._processes):
            if not process.is_alive():
                raise self._mourn(rank)

    def stop(self) -> None:
        """End the ranks; may be called again. Steps still in flight are given up."""
        if not self._processes:
            return
        self._dead = self._dead or ExecutorDied("the executor was stopped")
        # A rank ends when it finds its queue at an end.
        self._requests.close()
        for replies in self._replies:
            replies.close()
        for process in self._processes:
            for escalate in (process.terminate, process.kill):
                process.join(_PATIENCE_S)
                if process.exitcode is not None:
                    break
                escalate()
            process.join()
            process.close()
        self._processes.clear()

    def receive(self) -> None:
        """Wait for the replies to the oldest request without any. Raises ExecutorDied."""
        if self._dead is not None:
            raise self._dead
        poll = select.poll()
        ranks = {reader.fileno(): rank for rank, reader in enumerate(self._replies)}
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        replies: dict[int, FromRank] = {}
        while len(replies) < self._num_ranks:
            for fd, _ in poll.poll():
                replies[ranks[fd]] = self._receive_from(ranks[fd], replies)
                # From here on only its death is of interest: the others may wait for it in vain.
                poll.modify(fd, 0)
        self._pending.popleft().complete([replies[rank] for rank in range(self._num_ranks)])

    def _receive_from(self, rank: int, replies: Mapping[int, FromRank]) -> FromRank:
        """The reply of `rank`, which has one or is dead; dead it is if it has replied before."""
        if rank in replies:
            raise self._mourn(rank)
        try:
            raw = self._replies[rank].get()
        except QueueClosed:
            raise self._mourn(rank) from None
        assert raw is not None
        return self._decoder.decode(raw)

    def _send(self, request: ToRank) -> PendingReply:
        if self._dead is not None:
            raise self._dead
        message = self._encode(request)
        try:
            self._requests.put(message)
        except QueueClosed as closed:
            assert closed.reader is not None
            raise self._mourn(closed.reader) from None
        return self._expect()

    def _expect(self) -> PendingReply:
        pending = PendingReply(self)
        self._pending.append(pending)
        return pending

    def _mourn(self, rank: int) -> ExecutorDied:
        process = self._processes[rank]
        process.join(1.0)  # its pipes end a moment before its exit code is known
        code = process.exitcode
        if code is None:
            why = "closed its queues but is still running"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            why = f"ended with exit code {code}"
        self._dead = ExecutorDied(f"rank {rank} (process {process.pid}) {why}")
        return self._dead
