"""The engine core's own process: its loop between a socket and the core."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import zmq

from vllm.config.vllm import VllmConfig
from vllm.distributed.codec import decoder, encoder
from vllm.engine.messages import EngineDead, FromEngine, Shutdown, ToEngine
from vllm.errors import ConfigError, LoadError, NotAvailable
from vllm.logger import init_logger, tag_process

if TYPE_CHECKING:
    from vllm.engine.client import Core

logger = init_logger(__name__)

IDLE_MS: Final = 1000  # between looks at the ranks while there is no work


class Addresses(NamedTuple):
    """Bound by the front end, which outlives the core."""

    to_core: str
    from_core: str


def make_engine_core(config: VllmConfig) -> Core:
    # The model stack, which only the process that runs the core needs.
    from vllm.engine.core import EngineCore

    return EngineCore(config)


def core_main(
    make_core: Callable[[VllmConfig], Core], config: VllmConfig, addresses: Addresses
) -> None:
    """Run an engine core until told to shut down, or until the front end is gone."""
    # Ctrl-C reaches the whole terminal; the front end decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    tag_process("core")
    link = CoreLink(addresses)
    try:
        _serve(make_core, config, link)
    except (ConfigError, LoadError, NotAvailable) as error:
        link.send(EngineDead(str(error), type(error).__name__))
        sys.exit(1)
    except Exception as error:  # whatever it is, it is the last thing the front end hears
        logger.exception("The engine core failed")
        link.send(EngineDead(f"{type(error).__name__}: {error}"))
        sys.exit(1)
    finally:
        link.close()


def _serve(make_core: Callable[[VllmConfig], Core], config: VllmConfig, link: CoreLink) -> None:
    core = make_core(config)
    # A full collection that walks through all modules stops everything for a third of a second.
    gc.collect()
    gc.freeze()
    try:
        link.send(core.ready)
        while True:
            if not core.has_work:
                link.wait(on_idle=core.check_health)
            for message in link.receive():
                if isinstance(message, Shutdown):
                    return
                answer = core.handle(message)
                if answer is not None:
                    link.send(answer)
            if core.has_work:
                updates = core.step()
                if updates is not None:
                    link.send(updates)
    finally:
        core.stop()


class CoreLink:
    """The core's end of the sockets."""

    def __init__(self, addresses: Addresses) -> None:
        self._encode = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = decoder(ToEngine)
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._outbox = self._context.socket(zmq.PUSH)
        for socket, address in (
            (self._inbox, addresses.to_core),
            (self._outbox, addresses.from_core),
        ):
            socket.set_hwm(0)  # a busy front end must not stop the core
            socket.connect(address)
        parent = multiprocessing.parent_process()
        assert parent is not None, "a core process is started by its front end"
        self._parent = parent.sentinel
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._parent, zmq.POLLIN | zmq.POLLERR)

    def send(self, message: FromEngine) -> None:
        self._outbox.send(self._encode(message))

    def wait(self, on_idle: Callable[[], None]) -> None:
        """Until there is something to receive; `on_idle` is called now and then."""
        while not self._poller.poll(IDLE_MS):
            on_idle()

    def receive(self) -> Iterator[ToEngine]:
        """What has come so far. Exits if the front end is gone."""
        ready = dict(self._poller.poll(0))
        if self._parent in ready:
            logger.error("The front end is gone; stopping")
            sys.exit(1)
        while self._inbox in ready:
            try:
                data = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._decode(data)
            if message is not None:
                yield message

    def _decode(self, data: bytes) -> ToEngine | None:
        """None for what cannot be read, which must not end everyone else's requests."""
        try:
            return self._decoder.decode(data)
        except Exception:
            logger.exception("Dropped a message of %d bytes that does not decode", len(data))
            return None

    def close(self) -> None:
        self._inbox.close(linger=0)
        self._outbox.close(linger=1000)  # ms, for the last words
        self._context.term()


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)
