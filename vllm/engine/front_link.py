"""A front end's end of the sockets to its engine cores."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from typing import Final, NamedTuple

import msgspec
import zmq

from vllm.engine.addresses import TAG, Addresses, CoreAddress
from vllm.logger import init_logger
from vllm.messages.codec import decoder, encoder
from vllm.messages.engine import FromEngine, ToEngine

logger = init_logger(__name__)

LAST_MESSAGES_S: Final = 0.2  # for messages that a core sent just before it ended
MOST_MESSAGES_S: Final = 1.0  # the same, while other cores go on to send
NO_CORE: Final = -1  # of an arrival that `wake` has caused
# Of a connection to another machine on which nothing comes back: it is made anew.
KEEP_ALIVE: Final = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 3,  # s
    zmq.TCP_KEEPALIVE_INTVL: 1,  # s
    zmq.TCP_KEEPALIVE_CNT: 4,
}


class Arrival(NamedTuple):
    core: int
    message: FromEngine | None  # None: a file watched for the core is readable, so it has ended
    life: int = 0


class FrontLink:
    """One thread may send and another receive, and connect cores and watch files."""

    def __init__(self, addresses: Addresses, index: int) -> None:
        self._encode = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = decoder(FromEngine)
        self._sender = bytes((index,))
        self._context = zmq.Context()
        self._sending = threading.Lock()  # a core that is started again gets another socket
        self._outboxes: dict[int, zmq.Socket[bytes]] = {}
        self._inbox = self._socket(zmq.PULL)
        self._inbox.bind(addresses.from_core[index])
        if addresses.from_far:
            self._inbox.bind(addresses.from_far[index])
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._wake_reader, self._wake_writer = os.pipe()
        self._poller.register(self._wake_reader, zmq.POLLIN)
        self._watched: dict[int, int] = {}  # core by file
        self._ended_s: dict[int, float] = {}  # by file: when it was seen to be readable

    def connect(self, core: CoreAddress) -> None:
        """Send to this life of a core from now on."""
        outbox = self._socket(zmq.PUSH)
        outbox.connect(core.to_core)
        with self._sending:
            before = self._outboxes.get(core.number)
            self._outboxes[core.number] = outbox
            if before is not None:
                before.close(linger=0)

    def watch(self, fd: int, core: int = 0) -> None:
        """Let `receive` tell, once, that `fd` is readable. A core has one file at a time."""
        for other, of in list(self._watched.items()):
            if of == core:
                del self._watched[other]
                if self._ended_s.pop(other, None) is None:
                    self._poller.unregister(other)
        self._watched[fd] = core
        self._poller.register(fd, zmq.POLLIN | zmq.POLLERR)

    def send(self, message: ToEngine, core: int = 0) -> None:
        """Never waits. Without a core it is lost, which `receive` reports."""
        data = self._encode(message)
        with self._sending:
            outbox = self._outboxes.get(core)
            if outbox is not None and not outbox.closed:
                outbox.send(self._sender + data, zmq.NOBLOCK)

    def receive(self) -> Arrival:
        """The next message, or what has ended; waits for it."""
        while True:
            if not self._ended_s:
                ready = dict(self._poller.poll())
                for fd in ready.keys() & self._watched.keys():
                    # The core may be gone with its last words still on the way.
                    self._ended_s[fd] = time.monotonic()
                    self._poller.unregister(fd)
                if self._wake_reader in ready:
                    os.read(self._wake_reader, 1)
                    return Arrival(NO_CORE, None)
                if self._inbox in ready and (arrival := self._message()) is not None:
                    return arrival
                continue
            fd, since_s = min(self._ended_s.items(), key=lambda item: item[1])
            passed_s = time.monotonic() - since_s
            wait_ms = max(0, round((LAST_MESSAGES_S - passed_s) * 1000))
            if passed_s < MOST_MESSAGES_S and self._inbox.poll(wait_ms):
                if (arrival := self._message()) is not None:
                    return arrival
                continue
            del self._ended_s[fd]
            return Arrival(self._watched.pop(fd), None)

    def wake(self) -> None:
        """Let `receive` return; may be called by any thread."""
        os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """May be called again."""
        with self._sending:
            for outbox in self._outboxes.values():
                outbox.close(linger=0)
        if not self._inbox.closed:
            self._inbox.close(linger=0)
            self._context.term()
            os.close(self._wake_reader)
            os.close(self._wake_writer)

    def _message(self) -> Arrival | None:
        """None for what cannot be read, which must not end everyone's requests."""
        data = self._inbox.recv()
        try:
            core, life = TAG.unpack_from(data)
            return Arrival(core, self._decoder.decode(memoryview(data)[TAG.size :]), life)
        except (struct.error, msgspec.MsgspecError):
            logger.exception("A message of %d bytes does not decode", len(data))
            return None

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.ipv6 = True
        for option, value in KEEP_ALIVE.items():
            socket.setsockopt(option, value)
        socket.set_hwm(0)  # a slow core must not block those who send to it
        socket.linger = 0
        return socket


def is_readable(fd: int) -> bool:
    """Whether a file is readable now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
