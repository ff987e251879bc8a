"""A rank's side of the protocol: serves requests in order, and replies to each in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from vllm.distributed.place import Place
from vllm.executor.control import RankWorker, WorkerType, invoke
from vllm.executor.ranks import Channel, ChannelClosed
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

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def rank_main(worker_type: WorkerType, config: VllmConfig, place: Place, channel: Channel) -> None:
    """Serve until the executor closes its end, then return."""
    # Only the driver has values to wait for.
    is_threaded = place.is_driver and config.scheduler.pipeline_depth > 1
    sender = _Sender(channel, is_threaded)
    worker = None
    try:
        worker = _load(worker_type, config, place, sender)
        if worker is not None:
            _serve(worker, channel, sender)
    except ChannelClosed:
        return
    finally:
        sender.stop()
        if worker is not None:
            worker.close()


class _Sender:
    """Sends replies in the order of `send`.

    With steps in flight, waiting for the tokens of one must not keep the next from being started,
    so a thread does the waiting; without, handing over would only cost time.
    """

    def __init__(self, channel: Channel, is_threaded: bool) -> None:
        self._channel = channel
        self._encode: Callable[[FromRank], bytes] = encoder().encode
        self._thread = ThreadPoolExecutor(1, "replies") if is_threaded else None

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
        self._channel.put(message)


def _load(
    worker_type: WorkerType, config: VllmConfig, place: Place, sender: _Sender
) -> RankWorker | None:
    """A worker with its model loaded, reported to the executor; None if that failed."""
    try:
        worker = worker_type(config, place)
        worker.load()
        facts = worker.facts()
    except Exception as error:
        sender.send(functools.partial(_same, failure(error)))
        return None
    sender.send(lambda: Loaded(facts))
    return worker


def _serve(worker: RankWorker, channel: Channel, sender: _Sender) -> None:
    """Raises ChannelClosed in the end."""
    decode: msgspec.msgpack.Decoder[ToRank] = decoder(ToRank)
    while True:
        request = channel.get()
        try:
            sender.send(_perform(worker, decode.decode(request)))
        except ChannelClosed:
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
