"""A TCP connection between two nodes: frames of bytes out and back, and how its end shows.

The kernel looks after a connection on which nothing is sent (keep-alive), and a link of signs of
life gives up what is not acknowledged. So a machine that has lost its power or its cable is noticed
within seconds, and a process that is only stopped is not taken for one.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from vllm.executor.ranks import ChannelClosed

_HEADER: Final = struct.Struct("<IBi")  # bytes of the payload, kind, rank
_READ_BYTES: Final = 1 << 20
_TICK_S: Final = 0.5  # between calls of `on_wait`
# Of a connection on which nothing comes back: about 7 s in all.
_IDLE_S: Final = 3
_PROBE_S: Final = 1
_PROBES: Final = 4
_UNACKNOWLEDGED_MS: Final = 7000


class Kind(enum.IntEnum):
    HELLO = 0  # by an agent, first
    WELCOME = 1  # by node 0, when all nodes have come
    REFUSED = 2  # by node 0: the agent cannot take part
    REQUEST = 3  # by node 0, to all ranks of the node
    REPLY = 4  # of one rank
    FAULT = 5  # by an agent, last: its ranks are of no use any more
    STOP = 6  # by node 0: the engine ends
    KILL = 7  # by node 0: the engine has failed
    BEAT = 8  # by node 0, to be answered
    STATES = 9  # of the node's ranks: a sign of life of the agent
    WORD = 10  # between processes of an external launcher


class Frame(NamedTuple):
    kind: Kind
    rank: int  # of a reply; -1 of others
    payload: bytes


class LinkClosed(ChannelClosed):
    """The other node, or the way to it, is gone. The message says how that showed."""


class Link:
    """One end of a connection. `put` and what reads may be used by one thread each."""

    def __init__(self, connection: socket.socket, most_bytes: int = (1 << 32) - 1) -> None:
        """`most_bytes`: of a frame that this end takes. Raises OSError if it has ended already."""
        connection.setblocking(False)
        tcp = socket.IPPROTO_TCP
        connection.setsockopt(tcp, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(tcp, socket.TCP_KEEPIDLE, _IDLE_S)
        connection.setsockopt(tcp, socket.TCP_KEEPINTVL, _PROBE_S)
        connection.setsockopt(tcp, socket.TCP_KEEPCNT, _PROBES)
        self.own_address = str(connection.getsockname()[0])
        self.peer_address = str(connection.getpeername()[0])
        self.most_bytes = most_bytes
        self._socket = connection
        self._read = bytearray()
        self._end = ""  # how the link has ended

    def limit_unacknowledged(self) -> None:
        """Give the link up when what was sent is not acknowledged for seconds.

        Not for a link whose other end may leave much unread.
        """
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)

    def fileno(self) -> int:
        """A descriptor to poll: readable when `frames` may have something, or the link's end."""
        return self._socket.fileno()

    def put(
        self,
        kind: Kind,
        payload: bytes = b"",
        rank: int = -1,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Send one frame. Raises LinkClosed.

        `on_wait` is called about twice a second while the other end takes nothing; what it raises
        ends the use of the link.
        """
        header = _HEADER.pack(len(payload), kind, rank)
        # A small frame is one packet.
        parts = [header + payload] if len(payload) < 1 << 16 else [header, payload]
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    if not _await(self._socket, select.POLLOUT, _TICK_S):
                        on_wait()
                except OSError as error:
                    raise LinkClosed(f"the connection ended: {error.strerror}") from None

    def tell(self, kind: Kind, payload: bytes = b"") -> None:
        """As `put`, of a few bytes. Raises LinkClosed, too, if the other end reads nothing."""
        self.put(kind, payload, on_wait=_give_up)

    def frames(self) -> list[Frame]:
        """Those that have come whole. Raises LinkClosed where none is left and the link ended."""
        if not self._end:
            self._receive()
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        if self._end and not found:
            raise LinkClosed(self._end)
        return found

    def wait(self, timeout_s: float) -> bool:
        """For something to read, or the end of the link; whether that has come."""
        return _await(self._socket, select.POLLIN, timeout_s)

    def finish(self, patience_s: float) -> None:
        """Say that nothing more is sent, and read until the other end has closed too.

        Closed at once, a link may lose what was sent last.
        """
        until_s = time.monotonic() + patience_s
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := until_s - time.monotonic()) > 0:
                if self.wait(left_s):
                    self.frames()
        except (OSError, LinkClosed):
            return

    def shut(self) -> None:
        """End the link in both directions; a thread that waits for it goes on."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended
            return

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end = f"the connection ended: {error.strerror}"
            return
        self._read += data
        if not data:
            self._end = "the connection ended"

    def _next(self) -> Frame | None:
        if len(self._read) < _HEADER.size:
            return None
        length, kind, rank = _HEADER.unpack_from(self._read)
        if length > self.most_bytes or kind not in Kind.__members__.values():
            self._read.clear()
            self._end = "what came is of another program"
            return None
        end = _HEADER.size + length
        if len(self._read) < end:
            return None
        payload = bytes(memoryview(self._read)[_HEADER.size : end])
        del self._read[:end]
        return Frame(Kind(kind), rank, payload)


def _give_up() -> None:
    raise LinkClosed("it reads nothing")


def _await(connection: socket.socket, event: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(timeout_s * 1000))
