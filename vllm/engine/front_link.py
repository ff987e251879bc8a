"""A front end's end of the sockets to its engine core."""

from __future__ import annotations

from typing import Final

import msgspec
import zmq

from vllm.engine.addresses import Addresses
from vllm.messages.codec import decoder, encoder
from vllm.messages.engine import FromEngine, ToEngine

LAST_WORDS_MS: Final = 200  # for messages that a core sent just before it ended


class FrontLink:
    """One thread may send and another receive."""

    def __init__(self, addresses: Addresses, index: int) -> None:
        self._encode = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = decoder(FromEngine)
        self._sender = bytes((index,))
        self._context = zmq.Context()
        self._outbox = self._context.socket(zmq.PUSH)
        self._inbox = self._context.socket(zmq.PULL)
        self._poller = zmq.Poller()
        for socket in (self._outbox, self._inbox):
            socket.set_hwm(0)  # a slow core must not block those who send to it
            socket.linger = 0
        self._outbox.connect(addresses.to_core)
        self._inbox.bind(addresses.from_core[index])
        self._poller.register(self._inbox, zmq.POLLIN)

    def watch(self, *fds: int) -> None:
        """Let `receive` return when one of `fds` is readable."""
        for fd in fds:
            self._poller.register(fd, zmq.POLLIN | zmq.POLLERR)

    def send(self, message: ToEngine) -> None:
        """Never waits. Without a core it is lost, of which `receive` tells."""
        data = self._encode(message)
        if not self._outbox.closed:
            self._outbox.send(self._sender + data, zmq.NOBLOCK)

    def receive(self) -> FromEngine | None:
        """The next message, waiting for it. None once a watched file is readable."""
        ready = dict(self._poller.poll())
        # The core may be gone with its last words still on the way.
        if self._inbox not in ready and not self._inbox.poll(LAST_WORDS_MS):
            return None
        return self._decoder.decode(self._inbox.recv())

    def close(self) -> None:
        """May be called again."""
        if not self._outbox.closed:
            self._outbox.close(linger=0)
            self._inbox.close(linger=0)
            self._context.term()
