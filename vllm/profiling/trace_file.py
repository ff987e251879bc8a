"""A file of trace events, as Perfetto and chrome://tracing read it, that is valid at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm.logger import init_logger

logger = init_logger(__name__)

_END: Final = b"\n]\n"
_MOST_BYTES: Final = 1 << 30  # Perfetto's page loads little more

Event = Mapping[str, Any]


class TraceFile:
    """A JSON array that grows. Not thread-safe.

    Each write puts events over the closing bracket and a new one behind them in one call, so that
    the file is whole JSON between writes: a process that is killed needs no last word.
    """

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        """Raises OSError."""
        self.path = path
        self._most_bytes = most_bytes
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._is_full = False
        self._size = self._put(b"[", 0)
        self._is_empty = True

    def write(self, events: Sequence[Event]) -> None:
        """What the disk or the limit refuses is dropped, with one warning."""
        if not events or self._is_full:
            return
        text = b",\n".join(map(msgspec.json.encode, events))
        data = (b"\n" if self._is_empty else b",\n") + text
        if self._size + len(data) > self._most_bytes:
            self._stop(f"it has {self._size >> 20} MiB, which is what viewers can load")
            return
        try:
            self._size = self._put(data, self._size)
        except OSError as error:
            self._stop(str(error))
            return
        self._is_empty = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._is_full = -1, True

    def _put(self, data: bytes, where: int) -> int:
        """-> where the closing bracket begins now."""
        whole = data + _END
        written = os.pwrite(self._fd, whole, where)
        while written < len(whole):
            written += os.pwrite(self._fd, whole[written:], where + written)
        return where + len(data)

    def _stop(self, why: str) -> None:
        logger.warning("The timeline in %s ends here: %s", self.path, why)
        self._is_full = True
        try:
            # A disk that ran full in the middle of an event left half of it.
            os.pwrite(self._fd, _END, self._size)
            os.ftruncate(self._fd, self._size + len(_END))
        except OSError:
            logger.warning("Its last event in %s may be cut off", self.path)
