"""Signs of life of a core's process, which are no matter of how long its steps take.

A thread of the core writes the time into a file that every front end has mapped. It stops when the
process is stopped, or nothing in it runs any more; never while the core computes, compiles or waits
for a device.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import threading
import time
from contextlib import suppress
from typing import Final, Protocol

from vllm.logger import init_logger
from vllm.utils.processor_time import processor_time_s

logger = init_logger(__name__)
BEAT_S: Final = 1.0
LIMIT_S: Final = 30.0  # silence from which on a core counts as hung
# A second look, in case nobody here has run for as long, or the core holds Python's lock.
LOOKS: Final = 20
LOOK_S: Final = 0.1
_TIME: Final = struct.Struct("=d")  # of time.monotonic(), which all processes share


def start_heart(path: str) -> None:
    """In the core's process."""
    memory = _mapped(path)

    def beat() -> None:
        while True:
            _TIME.pack_into(memory, 0, time.monotonic())
            time.sleep(BEAT_S)

    threading.Thread(target=beat, name="heart", daemon=True).start()


class Pulse(Protocol):
    def silence_s(self) -> float:
        """Since the last sign of life."""
        ...

    def silences_s(self) -> list[float]:
        """Seconds since the last sign of life of each core, by number."""
        ...

    async def has_stopped(self) -> bool:
        """The core hangs. Takes a moment if so."""
        ...


class OwnPulse:
    """Of a core in this process: whoever asks lives."""

    def silence_s(self) -> float:
        return 0.0

    def silences_s(self) -> list[float]:
        return [0.0]

    async def has_stopped(self) -> bool:
        return False


class ProcessPulse:
    def __init__(self, path: str, pid: int, limit_s: float = LIMIT_S) -> None:
        self.pid = pid
        self.limit_s = limit_s
        self._memory = _mapped(path)
        self._is_told = False

    def silence_s(self) -> float:
        (last_s,) = _TIME.unpack_from(self._memory)
        return max(0.0, time.monotonic() - float(last_s))

    def silences_s(self) -> list[float]:
        return [self.silence_s()]

    async def has_stopped(self) -> bool:
        is_silent = self.silence_s() > self.limit_s and not await self._moves()
        if is_silent != self._is_told:
            self._is_told = is_silent
            if is_silent:
                logger.error(
                    "The engine core (process %d) has given no sign of life for %.0f s: it is "
                    "stopped, or hangs. Its requests wait",
                    self.pid,
                    self.silence_s(),
                )
            else:
                logger.warning("The engine core (process %d) lives again", self.pid)
        return is_silent

    async def _moves(self) -> bool:
        """It beats after all, or computes: what holds Python's lock for long keeps the thread."""
        before_s = processor_time_s(self.pid)
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK_S)
            if self.silence_s() <= self.limit_s or processor_time_s(self.pid) > before_s:
                return True
        return False


class FarPulse:
    """Signs of life of a core on another machine, which a process of this one hears and notes."""

    def __init__(self, path: str, limit_s: float = LIMIT_S) -> None:
        with suppress(FileExistsError):
            make_file(path)
        self._limit_s = limit_s
        self._memory = _mapped(path)

    def note(self, silence_s: float) -> None:
        """What its machine says."""
        _TIME.pack_into(self._memory, 0, time.monotonic() - silence_s)

    def silence_s(self) -> float:
        (last_s,) = _TIME.unpack_from(self._memory)
        return max(0.0, time.monotonic() - float(last_s))

    def silences_s(self) -> list[float]:
        return [self.silence_s()]

    async def has_stopped(self) -> bool:
        return self.silence_s() > self._limit_s


def make_file(path: str) -> None:
    """Before the core is started, which counts as its first sign of life."""
    with open(path, "xb") as file:
        file.write(_TIME.pack(time.monotonic()))


def _mapped(path: str) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), _TIME.size)
