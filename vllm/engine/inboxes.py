"""Messages to all front ends about a core that has ended."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zmq

from vllm.engine.addresses import TAG
from vllm.engine.front_link import KEEP_ALIVE
from vllm.messages.codec import encoder
from vllm.messages.engine import FromEngine

_LINGER_MS = 1000


class Inboxes:
    """The inboxes of all front ends. May be used by several threads."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._encode = encoder().encode
        self._sending = threading.Lock()
        self._context = zmq.Context()
        self._sockets = [self._context.socket(zmq.PUSH) for _ in addresses]
        for socket, address in zip(self._sockets, addresses, strict=True):
            socket.ipv6 = True
            for option, value in KEEP_ALIVE.items():
                socket.setsockopt(option, value)
            socket.set_hwm(0)
            socket.connect(address)

    def put(self, message: FromEngine, core: int, life: int) -> None:
        """Send it to all front ends in the name of this life of a core."""
        data = TAG.pack(core, life % 256) + self._encode(message)
        with self._sending:
            for socket in self._sockets:
                if not socket.closed:
                    socket.send(data)

    def close(self) -> None:
        with self._sending:
            for socket in self._sockets:
                socket.close(linger=_LINGER_MS)
        self._context.term()
