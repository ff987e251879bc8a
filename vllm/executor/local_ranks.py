"""Ranks that are spawned processes of this machine, reached through shared memory."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from typing import Final

from vllm.distributed.place import Place
from vllm.executor.base import ExecutorDied
from vllm.executor.ranks import RankMain, SetAside, no_devices
from vllm.executor.shm_queue import BroadcastReader, BroadcastWriter, QueueClosed, broadcast_queue
from vllm.utils.spawning import begin_process, undisturbed

_GRACE_S: Final = 5.0  # for a process to end by itself before it is terminated, and then killed


class LocalRanks:
    """One process per rank. Implements Ranks.

    The process that starts ranks must not be daemonic: Python forbids such a process children.
    """

    def __init__(self, devices: SetAside = no_devices) -> None:
        """`devices` sets devices of this machine aside, as Platform.devices does."""
        self._devices = devices
        self.processes: list[SpawnProcess] = []  # by rank
        self._replies: list[BroadcastReader] = []  # by rank
        self._poll = select.poll()
        self._rank_of: dict[int, int] = {}  # by descriptor in `_poll`
        self._closing = ExitStack()

    def start(self, main: RankMain, places: Sequence[Place]) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests, request_readers = broadcast_queue(len(places))
        self._closing.callback(self._requests.close)
        # Memory without a name, in which the ranks meet: nothing is left behind, whoever dies.
        memory = os.memfd_create("vllm-ranks")
        self._closing.callback(os.close, memory)
        meeting = f"/proc/{os.getpid()}/fd/{memory}"
        devices = self._closing.enter_context(self._devices(len(places)))
        for place, device, requests in zip(places, devices, request_readers, strict=True):
            reply_writer, (replies,) = broadcast_queue(1)
            channel = _QueueChannel(requests, reply_writer)
            for end in (replies, channel):
                self._closing.callback(end.close)
            process = context.Process(
                target=_run,
                args=(main, replace(place, rendezvous=meeting, device=device), channel),
                name=f"vllm-rank-{place.rank}",
                daemon=True,
            )
            with undisturbed():
                process.start()
            channel.close()  # only the rank may hold it, or its death would not show
            self.processes.append(process)
            self._replies.append(replies)
            self._rank_of[replies.fileno()] = place.rank
            self._poll.register(replies.fileno(), select.POLLIN)

    def put(self, request: bytes) -> None:
        try:
            self._requests.put(request)
        except QueueClosed as closed:
            assert closed.reader is not None
            raise self._rank_died(closed.reader) from None

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        events = self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        gone = []
        for fd, event in events:
            rank = self._rank_of[fd]
            if not event & select.POLLIN:
                gone.append(rank)
                continue
            try:
                reply = self._replies[rank].get()
            except QueueClosed:
                gone.append(rank)
                continue
            assert reply is not None
            yield rank, reply
        if not events:
            # A process that the rank has forked may hold its pipes open.
            gone = [i for i, process in enumerate(self.processes) if not process.is_alive()]
        if gone:
            raise self._rank_died(gone[0])

    def stop(self) -> None:
        self._closing.close()  # a rank ends when it finds its channel closed
        for escalate in (SpawnProcess.terminate, SpawnProcess.kill):
            until = time.monotonic() + _GRACE_S
            for process in self.processes:
                process.join(max(0.0, until - time.monotonic()))
                if process.exitcode is None:
                    escalate(process)
        for process in self.processes:
            process.join()
            process.close()
        self.processes.clear()

    def _rank_died(self, rank: int) -> ExecutorDied:
        process = self.processes[rank]
        process.join(1.0)  # its pipes end a moment before its exit code is known
        code = process.exitcode
        if code is None:
            why = "closed its queues but is still running"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            why = f"ended with exit code {code}"
        return ExecutorDied(f"rank {rank} (process {process.pid}) {why}")


class _QueueChannel:
    """A Channel over two queues. Can be given to a process that is being spawned."""

    def __init__(self, requests: BroadcastReader, replies: BroadcastWriter) -> None:
        self._requests = requests
        self._replies = replies

    def get(self) -> bytes:
        request = self._requests.get()
        assert request is not None
        return request

    def put(self, reply: bytes) -> None:
        self._replies.put(reply)

    def close(self) -> None:
        self._requests.close()
        self._replies.close()


def _run(main: RankMain, place: Place, channel: _QueueChannel) -> None:
    """What a rank's process runs."""
    # Ctrl-C reaches the whole terminal group; the engine decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_process()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    main(place, channel)


def _die_with_parent() -> None:
    """End this process when the engine's is gone, even in the middle of a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
