"""A rank's side of the protocol: serves requests in order, and replies to each in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from vllm.distributed.place import Place
from vllm.executor.control import RankStep, RankWorker, WorkerType, invoke
from vllm.executor.handshake import introduction
from vllm.executor.pulse import Pulse, PulseObserver
from vllm.executor.rank_state import Activity
from vllm.executor.ranks import Channel, ChannelClosed
from vllm.messages.codec import decoder, encoder
from vllm.messages.rank import (
    BindKVCache,
    FromRank,
    Invoke,
    Load,
    Loaded,
    Returned,
    RunStep,
    StepDone,
    ToRank,
    failure,
)

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def rank_main(
    worker_type: WorkerType, config: VllmConfig, place: Place, channel: Channel, pulse: Pulse
) -> None:
    """Serve until the executor closes its end, then return."""
    # Only the driver has values to wait for.
    is_threaded = place.is_driver and config.scheduler.pipeline_depth > 1
    sender = _Sender(channel, is_threaded)
    server = _Server(worker_type, config, place, channel, pulse)
    try:
        sender.send(functools.partial(introduction, config))
        server.serve(sender)
    except ChannelClosed:
        return
    finally:
        sender.stop()
        server.close()


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


class _Server:
    """Does what is asked for, with the worker that the first request makes."""

    def __init__(
        self,
        worker_type: WorkerType,
        config: VllmConfig,
        place: Place,
        channel: Channel,
        pulse: Pulse,
    ) -> None:
        self._make_worker = functools.partial(worker_type, config, place)
        self._place = place
        self._channel = channel
        self._pulse = pulse
        self._worker: RankWorker | None = None

    def serve(self, sender: _Sender) -> None:
        """Raises ChannelClosed in the end; returns where the model does not load."""
        decode: msgspec.msgpack.Decoder[ToRank] = decoder(ToRank)
        while True:
            request = self._channel.get()
            try:
                sender.send(self._perform(decode.decode(request)))
            except ChannelClosed:
                raise
            except Exception as error:
                sender.send(functools.partial(_same, failure(error)))
                if self._worker is None:
                    return
            self._pulse.began(Activity.IDLE)

    def close(self) -> None:
        self._pulse.ask(str)
        if self._worker is not None:
            self._worker.close()

    def _perform(self, request: ToRank) -> Callable[[], FromRank]:
        """Start what is asked for; the answer is complete once the returned function has
        returned."""
        if isinstance(request, Load):
            self._worker, facts = self._load()
            return lambda: facts
        worker, pulse = self._worker, self._pulse
        assert worker is not None, "the first request is to load"
        match request:
            case RunStep(plan):
                pulse.began(Activity.STEP, plan.step)
                step = worker.execute(plan)
                return self._values_of(step, plan.step)
            case BindKVCache(layout):
                pulse.began(Activity.WARMING_UP)
                worker.bind_kv_cache(layout)
                return lambda: Returned(None)
            case Invoke(method, args):
                pulse.began(Activity.CALL)
                value = invoke(worker, method, tuple(args))
                return lambda: Returned(value)

    def _load(self) -> tuple[RankWorker, Loaded]:
        pulse = self._pulse
        pulse.began(Activity.JOINING)
        worker = self._make_worker()
        pulse.ask(worker.where)
        prepares_shapes = worker.launch_shapes() is not None
        worker.observe(PulseObserver(pulse, prepares_shapes))
        pulse.began(Activity.LOADING)
        worker.load()
        if prepares_shapes:  # which takes as long as compilers take
            pulse.began(Activity.MEASURING)
        return worker, Loaded(worker.facts())

    def _values_of(self, step: RankStep, number: int) -> Callable[[], StepDone]:
        if not self._place.is_driver:
            return lambda: StepDone(step.result())
        waits = self._pulse.waiting_for(number)

        def wait() -> StepDone:
            waits()
            try:
                return StepDone(step.result())
            finally:
                self._pulse.answered()

        return wait


def _same(reply: FromRank) -> FromRank:
    return reply
