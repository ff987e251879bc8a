"""The engine core's own process: its loop between sockets and the core."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

import msgspec
import zmq

from vllm.config.vllm import VllmConfig
from vllm.engine import scratch
from vllm.engine.addresses import SIBLING, TAG, Addresses, CoreAddress, in_url
from vllm.engine.core_group import ENDS_S, CoreGroup
from vllm.engine.front_link import KEEP_ALIVE
from vllm.engine.heartbeat import start_heart
from vllm.engine.routes import make_routes, refusal_of
from vllm.errors import ConfigError, LoadError, NotAvailable
from vllm.logger import init_logger, tag_process
from vllm.messages.codec import decoder, encoder
from vllm.messages.engine import (
    BeginWave,
    CallResult,
    EngineDead,
    EngineReady,
    EngineStats,
    FromEngine,
    Shutdown,
    StepUpdates,
    ToEngine,
)
from vllm.utils.spawning import begin_process

logger = init_logger(__name__)

IDLE_MS: Final = 1000  # between looks at the ranks while there is no work


class Core(Protocol):
    """What is called of an EngineCore."""

    ready: EngineReady

    @property
    def has_work(self) -> bool: ...
    def handle(self, message: ToEngine) -> CallResult | None: ...
    def step(self) -> StepUpdates | None: ...
    def check_health(self) -> None: ...
    def step_with_others(self, tell: Callable[[int], None]) -> None: ...
    def stop(self) -> None: ...


CoreMaker = Callable[[VllmConfig], Core]


def make_engine_core(config: VllmConfig) -> Core:
    # The model stack, which only the process that runs the core needs.
    from vllm.engine.core import EngineCore

    return EngineCore(config)


def core_main(
    make_core: CoreMaker, config: VllmConfig, addresses: Addresses, own: CoreAddress
) -> None:
    """Run an engine core until told to shut down, or until the front end is gone."""
    # Ctrl-C reaches the whole terminal; the front end decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    begin_process()
    has_others = config.parallel.data_parallel_size > 1
    tag_process(f"core {config.parallel.data_parallel_rank}" if has_others else "core")
    try:
        start_heart(own.heartbeat)
        link = CoreLink(addresses, own)
    except (OSError, zmq.ZMQError):
        if os.path.exists(addresses.directory):
            raise
        sys.exit(0)  # the process that has started this one has ended, and removed it
    end_with_parent(addresses.directory)
    group: CoreGroup | None = None
    try:
        if config.spreads_experts:
            group = CoreGroup(config, own, addresses.from_core, link.inbox_at)
            config = group.config
            link.connect_others(group)
        _serve(make_core, config, link, group)
    except (ConfigError, LoadError, NotAvailable) as error:
        link.broadcast(EngineDead(str(error), type(error).__name__))
        sys.exit(1)
    except Exception as error:  # whatever it is, it is the last thing the front end hears
        if group is not None and group.explains_failure():
            time.sleep(ENDS_S)
        logger.exception("The engine core failed")
        link.broadcast(EngineDead(f"{type(error).__name__}: {error}"))
        sys.exit(1)
    finally:
        link.close()


def _serve(
    make_core: CoreMaker, config: VllmConfig, link: CoreLink, group: CoreGroup | None
) -> None:
    core = make_core(config)
    if group is not None:
        core.step_with_others(link.begin_wave)
    # A full collection that walks through all modules stops everything for a third of a second.
    gc.collect()
    gc.freeze()
    routes = make_routes(link)
    try:
        link.broadcast(link.introduced(core.ready))
        link.note_up()
        if group is not None:
            group.is_up = True
        while True:
            if not core.has_work:
                link.wait(on_idle=core.check_health)
            for front_end, message in link.receive():
                if isinstance(message, Shutdown):
                    if group is not None and message.with_others:
                        group.agree_to_end()
                        continue
                    if group is not None:
                        group.leave()
                    return
                if not routes.take(front_end, message):
                    continue
                answer = core.handle(message)
                if answer is not None:
                    link.send(answer, front_end)
            if core.has_work:
                updates = core.step()
                if updates is not None:
                    routes.send(updates)
    except SystemExit:  # a signal has said so, of which the others hear by themselves
        if group is not None:
            group.leave()
        raise
    finally:
        core.stop()


def end_with_parent(directory: str) -> None:
    """End this process when its parent is gone, also while it is busy with something long.

    `directory` is the parent's, which cannot remove it any more.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process is started by another of ours"

    def watch() -> None:
        parent.join()
        scratch.remove(directory)
        logger.error("The process that started this one is gone; stopping")
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class CoreLink:
    """The core's end of the sockets. A message to it starts with its front end's index, a byte."""

    def __init__(self, addresses: Addresses, own: CoreAddress) -> None:
        self._encode = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = decoder(ToEngine)
        self.stats = EngineStats()  # as last sent
        self._own = own
        self._tag = TAG.pack(own.number, own.life % 256)
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.set_hwm(0)
        self._inbox.ipv6 = True
        self._inbox.bind(own.to_core)
        self._outboxes = [self._context.socket(zmq.PUSH) for _ in addresses.from_core]
        for outbox, address in zip(self._outboxes, addresses.from_core, strict=True):
            outbox.ipv6 = True
            for option, value in KEEP_ALIVE.items():
                outbox.setsockopt(option, value)
            outbox.set_hwm(0)  # a busy front end must not stop the core
            outbox.connect(address)

        self._siblings: list[zmq.Socket[bytes]] = []
        self._group = 0

    @property
    def num_front_ends(self) -> int:
        return len(self._outboxes)

    def inbox_at(self, host: str) -> str:
        """Where others send what is for this core: at this address of the machine or, if it is "",
        on this machine. Called once."""
        if not self._own.host:  # it is at a file so far
            if not host:
                return self._own.to_core
            self._inbox.bind(f"tcp://{in_url(host)}:*")
        return self._inbox.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect_others(self, group: CoreGroup) -> None:
        """Before `begin_wave`."""
        self._group = group.number
        for address in group.others:
            sibling = self._context.socket(zmq.PUSH)
            sibling.ipv6 = True
            sibling.set_hwm(0)
            sibling.connect(address)
            self._siblings.append(sibling)

    def begin_wave(self, number: int) -> None:
        """Tell the cores that share experts with this one."""
        message = bytes((SIBLING,)) + self._encode(BeginWave(number, self._group))
        for sibling in self._siblings:
            sibling.send(message)

    def introduced(self, ready: EngineReady) -> EngineReady:
        """With what front ends need to know of this process."""
        endpoint = self._inbox.getsockopt_string(zmq.LAST_ENDPOINT) if self._own.host else ""
        return msgspec.structs.replace(
            ready, pid=os.getpid(), life=self._own.life, endpoint=endpoint
        )

    def note_up(self) -> None:
        """Leave a file that tells the process which has started the core, unless it has ended."""
        with suppress(FileNotFoundError):
            Path(self._own.up).touch()

    def send(self, message: FromEngine, front_end: int) -> None:
        if isinstance(message, StepUpdates):
            self.stats = message.stats
        self._outboxes[front_end].send(self._tag + self._encoded(message))

    def _encoded(self, message: FromEngine) -> bytes:
        try:
            return self._encode(message)
        except Exception as error:
            if not isinstance(message, CallResult):
                raise
            # A function of the worker may have returned anything.
            text = f"what the call returned cannot be sent to this process: {error}"
            return self._encode(CallResult(message.call_id, error=f"NotAvailable: {text}"))

    def broadcast(self, message: FromEngine) -> None:
        data = self._tag + self._encode(message)
        for outbox in self._outboxes:
            outbox.send(data)

    def wait(self, on_idle: Callable[[], None]) -> None:
        """Until there is something to receive; `on_idle` is called now and then."""
        while not self._inbox.poll(IDLE_MS):
            on_idle()

    def receive(self) -> Iterator[tuple[int, ToEngine]]:
        """What has come so far, with the index of its front end."""
        while True:
            try:
                data = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if not data or self.num_front_ends <= data[0] != SIBLING:
                logger.error("Dropped a message of %d bytes of no front end", len(data))
                continue
            message = self._decode(data[0], memoryview(data)[1:])
            if isinstance(message, BeginWave) and message.group != self._group:
                continue  # of a life of all that has ended
            if message is not None:
                yield data[0], message

    def _decode(self, front_end: int, data: memoryview) -> ToEngine | None:
        """None for what cannot be read, which must not end everyone else's requests."""
        try:
            return self._decoder.decode(data)
        except Exception:
            logger.exception("A message of %d bytes does not decode", len(data))
        answer = refusal_of(data, self.stats)
        if answer is not None:
            self.send(answer, front_end)
        return None

    def close(self) -> None:
        self._inbox.close(linger=0)
        for sibling in self._siblings:
            sibling.close(linger=0)
        for outbox in self._outboxes:
            outbox.close(linger=1000)  # ms, for the last words
        self._context.term()


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)
