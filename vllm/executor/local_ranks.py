"""Ranks that are spawned processes of this machine, reached through shared memory."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Final

from tqdm import tqdm

from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.executor.base import ExecutorDied
from vllm.executor.pulse import RECORD_BYTES, Pulse, read
from vllm.executor.rank_state import RankState
from vllm.executor.ranks import RankMain, SetAside, no_devices
from vllm.executor.shm_queue import BroadcastReader, BroadcastWriter, QueueClosed, broadcast_queue
from vllm.executor.silence import Silence
from vllm.logger import init_logger, tag_process
from vllm.utils.spawning import (
    IMPORTED,
    IMPORTED_EXIT,
    begin_process,
    killed_with_parent,
    refuse_while_imported,
    undisturbed,
)
from vllm.utils.unnamed_memory import UnnamedMemory

logger = init_logger(__name__)

_GRACE_S: Final = 5.0  # for a process to end by itself before it is terminated, and then killed
_KILLED_S: Final = 10.0  # for one that was killed: a device's driver may keep it


class LocalRanks:
    """One process per rank. Implements Ranks; the places may be those of one of several nodes.

    The process that starts ranks must not be daemonic: Python forbids such a process children.
    """

    def __init__(self, devices: SetAside = no_devices) -> None:
        """`devices` sets devices of this machine aside for ranks, as Platform.devices does."""
        self._devices = devices
        # By position among the places.
        self.processes: list[SpawnProcess] = []
        self._ranks: list[int] = []  # in the world
        self._replies: list[BroadcastReader] = []
        self._silences: list[Silence] = []
        self._poll = select.epoll()
        self._position_of: dict[int, int] = {}  # by descriptor in `_poll`
        self._channels = ExitStack()  # closed, it ends the ranks
        self._held = ExitStack()  # what they use until they have ended
        self._memory = UnnamedMemory()
        self._held.callback(self._memory.close)

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait
        refuse_while_imported()
        context = multiprocessing.get_context("spawn")
        self._requests, request_readers = broadcast_queue(len(places))
        self._channels.callback(self._requests.close)
        # Memory without a name: nothing is left behind, whoever dies.
        meeting, _ = self._memory.new("vllm-meeting")
        shared = self._shared_memory(places)
        records, fd = self._memory.new("vllm-pulses")
        os.ftruncate(fd, len(places) * RECORD_BYTES)
        self._records = self._held.enter_context(mmap.mmap(fd, len(places) * RECORD_BYTES))
        devices = self._held.enter_context(self._devices([place.rank for place in places]))
        # Read by the rank when it has begun to give signs of life, for it imports the model stack.
        packed = bytes(ForkingPickler.dumps(main))
        is_lasting = threading.current_thread() is threading.main_thread()
        given = zip(places, devices, request_readers, strict=True)
        for position, (place, device, requests) in enumerate(given):
            reply_writer, (replies,) = broadcast_queue(1)
            channel = _QueueChannel(requests, reply_writer)
            for end in (replies, channel):
                self._channels.callback(end.close)
            Pulse(self._records, position).prepare()
            place = replace(
                place,
                rendezvous=place.rendezvous or meeting,
                memory=shared.get(place.pp.rank, ""),
                device=device,
            )
            process = context.Process(
                target=_run,
                args=(packed, place, channel, (records, position), is_lasting),
                name=f"vllm-rank-{place.rank}",
                daemon=True,
            )
            with undisturbed():
                process.start()
            channel.close()  # only the rank may hold it, or its death would not show
            self.processes.append(process)
            self._replies.append(replies)
            self._silences.append(Silence())
            self._ranks.append(place.rank)
            self._position_of[replies.fileno()] = position
            self._poll.register(replies.fileno(), select.EPOLLIN)

    def put(self, request: bytes) -> None:
        try:
            self._requests.put(request, self._on_wait)
        except QueueClosed as closed:
            assert closed.reader is not None
            raise self._rank_died(closed.reader) from None

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        events = self._poll.poll(timeout_s)
        gone = []
        for fd, event in events:
            position = self._position_of[fd]
            if not event & select.EPOLLIN:
                gone.append(position)
                continue
            try:
                reply = self._replies[position].get(on_wait=self._on_wait)
            except QueueClosed:
                gone.append(position)
                continue
            assert reply is not None
            yield self._ranks[position], reply
        if not events:
            # A process that the rank has forked may hold its pipes open.
            gone = [i for i, process in enumerate(self.processes) if not process.is_alive()]
        if gone:
            raise self._rank_died(gone[0])

    def fileno(self) -> int:
        """A descriptor to poll: readable when `ready` would not wait."""
        return self._poll.fileno()

    def seen(self) -> list[RankState]:
        """What every rank does, without a judgement. May be called by another thread, until these
        ranks are ended."""
        return [self._state(position) for position in range(len(self._ranks))]

    def states(self, lapse_s: float) -> list[RankState]:
        found = self.seen()
        for state, process, silence in zip(found, self.processes, self._silences, strict=True):
            assert process.pid is not None
            why = silence.look(state, process.pid, lapse_s)
            if why:
                raise ExecutorDied(
                    f"rank {state.rank} (process {process.pid}) {why}. It was {state.doing()}"
                )
        return found

    def stop(self) -> None:
        self._channels.close()  # a rank ends when it finds its channel closed
        self._join(_GRACE_S)
        if self._running():
            for process in self._running():
                process.terminate()
            self._join(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        for process in self._running():
            process.kill()
        self._channels.close()
        self._join(_KILLED_S)
        for process in self.processes:
            if process.exitcode is None:
                logger.error("Process %d was killed and does not end: left behind", process.pid)
            else:
                process.close()
        self.processes.clear()
        self._poll.close()
        self._held.close()

    def _running(self) -> list[SpawnProcess]:
        return [process for process in self.processes if process.exitcode is None]

    def _join(self, patience_s: float) -> None:
        until = time.monotonic() + patience_s
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))

    def _shared_memory(self, places: Sequence[Place]) -> dict[int, str]:
        """A path for every stage all of whose ranks are here; others cannot share memory."""
        here = Counter(place.pp.rank for place in places)
        whole = sorted(stage for stage, count in here.items() if count == places[0].tp.size)
        return {stage: self._memory.new("vllm-ranks")[0] for stage in whole}

    def _state(self, position: int) -> RankState:
        return read(self._records, self._ranks[position], position)

    def _rank_died(self, position: int) -> ExecutorDied:
        rank, process = self._ranks[position], self.processes[position]
        process.join(1.0)  # its pipes end a moment before its exit code is known
        code = process.exitcode
        if code == IMPORTED_EXIT:
            raise ConfigError(IMPORTED)
        if code is None:
            why = "closed its queues but is still running"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            why = f"ended with exit code {code}"
        doing = self._state(position).doing()
        return ExecutorDied(f"rank {rank} (process {process.pid}) {why}. It was {doing}")


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


def _run(
    packed: bytes,
    place: Place,
    channel: _QueueChannel,
    record: tuple[str, int],
    is_lasting: bool,
) -> None:
    """What a rank's process runs. `record`: memory with records, and which of them is its own.

    `is_lasting`: the thread that started it lives as long as its process.
    """
    # Ctrl-C reaches the whole terminal group; the engine decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_process()
    if place.world_size > 1:
        tag_process(f"rank {place.rank}")
    if is_lasting:
        killed_with_parent()  # which ends this process even where it is stopped
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pulse = _begin_pulse(*record)
    # By default bars of progress share a semaphore with other processes, which a process that is
    # killed leaves behind.
    tqdm.set_lock(threading.RLock())
    main: RankMain = pickle.loads(packed)
    try:
        main(place, channel, pulse)
    finally:
        pulse.stop()


def _begin_pulse(records: str, position: int) -> Pulse:
    try:
        with open(records, "r+b") as file:
            pulse = Pulse(mmap.mmap(file.fileno(), 0), position)
    except FileNotFoundError:  # the engine is gone
        os._exit(1)
    pulse.start()
    return pulse


def _die_with_parent() -> None:
    """End this process when the engine's is gone, even in the middle of a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
