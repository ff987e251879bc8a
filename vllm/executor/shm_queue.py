"""A broadcast queue of byte messages through shared memory: one writer, N readers, any processes.

Payloads lie in a ring that all ends map; each reader has two pipes. The writer copies a message
into the ring in fragments and sends every reader a *bell*, (length, whether more follows); a reader
copies the fragment out and sends an acknowledgement back, which gives its bytes back to the writer.
Both sides count bytes, so no position is kept in shared memory.

Memory ordering needs no fence of our own: a reader touches a fragment only after read(2) of its
bell, which the writer sent with write(2) after the copy. The kernel moves the bell under the pipe's
lock, whose release and acquire order the two processes' accesses to the ring on every architecture;
acknowledgements order the reuse of ring space the same way. It also means that waiting sides sleep
in the kernel, and that the death of a process is seen at once, as the end of its pipes.

The memory has no name (memfd), hence nothing can be left behind by a process that is killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, Final

from vllm.executor.ranks import ChannelClosed

_BELL = struct.Struct("<II")  # bytes in the ring, 1 if more fragments of the message follow
_ACK = b"\0"
# Bells and acknowledgements under way stay below the smallest pipe the kernel makes (one page), so
# that neither end ever blocks in writing them, which could deadlock the two.
_MAX_FRAGMENTS = 256
DEFAULT_CAPACITY_BYTES = 4 << 20
_TICK_MS: Final = 500  # between calls of `on_wait`


class QueueClosed(ChannelClosed):
    """The other end is gone. `reader` is the reader's index where a reader is."""

    def __init__(self, message: str, reader: int | None = None) -> None:
        super().__init__(message)
        self.reader = reader


class _End:
    """One end's descriptors and mapping. Can be given to a process that is being spawned."""

    def __init__(self, memory_fd: int, capacity: int, fds: list[int]) -> None:
        self._memory_fd = memory_fd
        self._capacity = capacity
        self._fds = fds
        self._position = 0
        self._closed = False
        self._ring = mmap.mmap(memory_fd, capacity)

    def __getstate__(self) -> dict[str, Any]:
        dup = reduction.DupFd
        return {
            "capacity": self._capacity,
            "memory": dup(self._memory_fd),
            "fds": [dup(fd) for fd in self._fds],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        fds = [fd.detach() for fd in state["fds"]]
        self.__init__(state["memory"].detach(), state["capacity"], fds)  # type: ignore[misc]

    def close(self) -> None:
        """Give up this end; the others notice. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._ring.close()
        for fd in (self._memory_fd, *self._fds):
            os.close(fd)

    def _spans(self, length: int) -> tuple[slice, slice]:
        """The ring's bytes of the next `length` positions: up to its end, and from its start."""
        begin = self._position % self._capacity
        end = begin + length
        self._position += length
        return slice(begin, min(end, self._capacity)), slice(0, max(0, end - self._capacity))


class BroadcastWriter(_End):
    """The writing end: every reader gets every message, in order. Used by one thread at a time."""

    def __init__(self, memory_fd: int, capacity: int, fds: list[int]) -> None:
        super().__init__(memory_fd, capacity, fds)
        half = len(fds) // 2
        self._bells, self._acks = fds[:half], fds[half:]
        self._unread: list[deque[int]] = [deque() for _ in self._bells]  # fragment lengths
        self._unread_bytes = [0] * half
        self._polls = [_reading_poll(fd) for fd in self._acks]

    def put(self, message: bytes, on_wait: Callable[[], None] = lambda: None) -> None:
        """Send `message`; blocks while the slowest reader is a ring behind.

        Raises QueueClosed if a reader is gone. `on_wait` is called about twice a second while this
        blocks; what it raises ends the queue's use.
        """
        view = memoryview(message)
        # Half a ring at most, so that readers copy one fragment while the next is written.
        step = max(1, self._capacity // 2)
        for begin in range(0, max(1, len(view)), step):
            fragment = view[begin : begin + step]
            for reader in range(len(self._bells)):
                self._make_room(reader, len(fragment), on_wait)
            self._put_fragment(fragment, more=begin + step < len(view))

    def _put_fragment(self, fragment: memoryview, more: bool) -> None:
        first, second = self._spans(len(fragment))
        cut = first.stop - first.start
        self._ring[first] = fragment[:cut]
        self._ring[second] = fragment[cut:]
        bell = _BELL.pack(len(fragment), more)
        for reader, fd in enumerate(self._bells):
            try:
                os.write(fd, bell)
            except BrokenPipeError:
                raise QueueClosed(f"reader {reader} is gone", reader) from None
            self._unread[reader].append(len(fragment))
            self._unread_bytes[reader] += len(fragment)

    def _make_room(self, reader: int, length: int, on_wait: Callable[[], None]) -> None:
        unread = self._unread[reader]
        while self._unread_bytes[reader] + length > self._capacity or len(unread) >= _MAX_FRAGMENTS:
            _await(self._polls[reader], on_wait)
            acks = os.read(self._acks[reader], _MAX_FRAGMENTS)
            if not acks:
                raise QueueClosed(f"reader {reader} is gone", reader)
            for _ in acks:
                self._unread_bytes[reader] -= unread.popleft()


class BroadcastReader(_End):
    """One reading end. Used by one thread at a time."""

    def __init__(self, memory_fd: int, capacity: int, fds: list[int]) -> None:
        super().__init__(memory_fd, capacity, fds)
        self._bell, self._ack = fds
        self._poll = _reading_poll(self._bell)

    def get(
        self, timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> bytes | None:
        """The next message; None if none begins within `timeout_s` (None: wait for ever).

        Raises QueueClosed if the writer is gone and every message of its was read. `on_wait` is
        called about twice a second while the rest of a message is awaited that has begun; what it
        raises ends the queue's use.
        """
        if timeout_s is not None and not self._poll.poll(timeout_s * 1000):
            return None
        fragment, more = self._get_fragment()
        if not more:
            return fragment
        parts = [fragment]
        while more:
            if on_wait is not None:
                _await(self._poll, on_wait)
            fragment, more = self._get_fragment()
            parts.append(fragment)
        return b"".join(parts)

    def fileno(self) -> int:
        """A descriptor to poll: readable when `get` would not block, hung up when the writer is."""
        return self._bell

    def _get_fragment(self) -> tuple[bytes, bool]:
        # Bells are written whole (less than PIPE_BUF), hence read whole.
        bell = os.read(self._bell, _BELL.size)
        if not bell:
            raise QueueClosed("the writer is gone")
        length, more = _BELL.unpack(bell)
        first, second = self._spans(length)
        fragment = self._ring[first] + self._ring[second] if second.stop else self._ring[first]
        # Where the writer is gone, what it wrote before is still ours to read.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ack, _ACK)
        return fragment, bool(more)


def _reading_poll(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll


def _await(poll: select.poll, on_wait: Callable[[], None]) -> None:
    while not poll.poll(_TICK_MS):
        on_wait()


def broadcast_queue(
    num_readers: int, capacity_bytes: int = DEFAULT_CAPACITY_BYTES
) -> tuple[BroadcastWriter, list[BroadcastReader]]:
    """Both ends of a new queue. Close the ends that were given to another process.

    As long as a copy of an end is open anywhere, the other end does not notice its death.
    """
    assert num_readers > 0 and capacity_bytes > 0, (num_readers, capacity_bytes)
    memory_fd = os.memfd_create("vllm-broadcast")
    os.ftruncate(memory_fd, capacity_bytes)
    bells = [os.pipe() for _ in range(num_readers)]
    acks = [os.pipe() for _ in range(num_readers)]
    writer = BroadcastWriter(
        os.dup(memory_fd), capacity_bytes, [w for _, w in bells] + [r for r, _ in acks]
    )
    readers = [
        BroadcastReader(os.dup(memory_fd), capacity_bytes, [bell_r, ack_w])
        for (bell_r, _), (_, ack_w) in zip(bells, acks, strict=True)
    ]
    os.close(memory_fd)
    return writer, readers
