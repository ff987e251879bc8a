"""The process of one rank: reads requests, serves them in order, replies in order."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from vllm.distributed.groups import Group
from vllm.executor.control import RankWorker, WorkerType, invoke
from vllm.executor.shm_queue import BroadcastReader, BroadcastWriter, QueueClosed
from vllm.messages.codec import decoder, encoder
from vllm.messages.rank import (
    BindKVCache,
    FromRank,
    Invoke,
    Loaded,
    Returned,
    RunStep,
    StepDone,
    ToRank,
    failure,
)
from vllm.utils.spawning import begin_process

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def rank_main(
    worker_type: WorkerType,
    config: VllmConfig,
    group: Group,
    requests: BroadcastReader,
    replies: BroadcastWriter,
) -> None:
    """Serve until the engine closes its end, then return."""
    # Ctrl-C reaches the whole terminal group; the engine is who decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_process()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    sender = _Sender(replies, threaded=config.scheduler.pipeline_depth > 1)
    worker = None
    try:
        worker = _load(worker_type, config, group, sender)
        if worker is not None:
            _serve(worker, requests, sender)
    except QueueClosed:
        return
    finally:
        sender.stop()
        if worker is not None:
            worker.close()


def _die_with_parent() -> None:
    """End this process when the engine's is gone, even in the middle of a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Sender:
    """Sends replies in the order of `send`.

    With steps in flight, waiting for the tokens of one must not keep the next from being started,
    so a thread does the waiting; without, handing over would only cost time.
    """

    def __init__(self, replies: BroadcastWriter, threaded: bool) -> None:
        self._replies = replies
        self._encode: Callable[[FromRank], bytes] = encoder().encode
        self._thread = ThreadPoolExecutor(1, "replies") if threaded else None

    def send(self, make: Callable[[], FromRank]) -> None:
        """Reply with make(), or with the error it raises."""
        if self._thread is None:
            self._send(make)
        else:
            self._thread.submit(self._send, make)

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _send(self, make: Callable[[], FromRank]) -> None:
        try:
            message = self._encode(make())
        except Exception as error:
            message = self._encode(failure(error))
        self._replies.put(message)


def _load(
    worker_type: WorkerType, config: VllmConfig, group: Group, sender: _Sender
) -> RankWorker | None:
    """A worker with its model loaded, reported to the engine; None if that failed."""
    try:
        worker = worker_type(config, group)
        worker.load()
        facts = worker.facts()
    except Exception as error:
        sender.send(functools.partial(_same, failure(error)))
        return None
    sender.send(lambda: Loaded(facts))
    return worker


def _serve(worker: RankWorker, requests: BroadcastReader, sender: _Sender) -> None:
    decode: msgspec.msgpack.Decoder[ToRank] = decoder(ToRank)
    while True:
        raw = requests.get()
        assert raw is not None
        try:
            sender.send(_perform(worker, decode.decode(raw)))
        except QueueClosed:
            raise
        except Exception as error:
            sender.send(functools.partial(_same, failure(error)))


def _same(reply: FromRank) -> FromRank:
    return reply


def _perform(worker: RankWorker, request: ToRank) -> Callable[[], FromRank]:
    """Start what is asked for; the answer is complete once the returned function has returned."""
    match request:
        case RunStep(plan):
            step = worker.execute(plan)
            return lambda: StepDone(step.result())
        case BindKVCache(layout):
            worker.bind_kv_cache(layout)
            return lambda: Returned(None)
        case Invoke(method, args):
            value = invoke(worker, method, tuple(args))
            return lambda: Returned(value)
