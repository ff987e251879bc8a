"""Where connections come whose first frame must say who they are."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final, Generic, TypeVar

import msgspec

from vllm.executor.nodes.link import Kind, Link, LinkClosed

_HELLO_BYTES: Final = 1 << 20
_MOST_STRANGERS: Final = 256

Hello = TypeVar("Hello")


class Arrivals(Generic[Hello]):
    """A listener, and connections of which no hello has come whole."""

    def __init__(self, host: str, port: int, hello: type[Hello]) -> None:
        """Listens at once; port 0: at any. Raises OSError."""
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.listener = socket.create_server((host, port), family=family)
        self.listener.setblocking(False)
        self._decoder = msgspec.msgpack.Decoder(hello)
        self._strangers: dict[int, Link] = {}  # by file

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def filenos(self) -> list[int]:
        """To poll: whichever is readable is for `hear`."""
        return [self.listener.fileno(), *self._strangers]

    def hear(self, fd: int) -> tuple[Link, Hello] | None:
        """Take a connection, or what it says; one whose hello has come belongs to the caller.

        What is no hello ends its connection.
        """
        if fd == self.listener.fileno():
            self._accept()
            return None
        link = self._strangers[fd]
        try:
            frames = link.frames()
            if not frames:
                return None
            if frames[0].kind is not Kind.HELLO:
                raise LinkClosed("what came is of another program")
            hello = self._decoder.decode(frames[0].payload)
        except (LinkClosed, msgspec.DecodeError):
            del self._strangers[fd]
            link.close()
            return None
        del self._strangers[fd]
        return link, hello

    def drop(self) -> None:
        """End connections that have not said who they are."""
        for link in self._strangers.values():
            link.close()
        self._strangers.clear()

    def close(self) -> None:
        """May be called again."""
        self.drop()
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it has gone again
            connection = self.listener.accept()[0]
            if len(self._strangers) >= _MOST_STRANGERS:
                connection.close()
                return
            link = Link(connection, _HELLO_BYTES)
            self._strangers[link.fileno()] = link
