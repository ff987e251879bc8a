"""Ctrl-C between two engine steps instead of inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class DeferredInterrupt:
    """While entered, the first SIGINT waits for `check`; a second one acts at once.

    An exception in the middle of a step would leave the scheduler half changed, and the engine
    unusable. Without effect outside the main thread, which no signal interrupts.
    """

    def __init__(self) -> None:
        self._pending = False
        self._previous: Any = None

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
        if exc_info[0] is None:
            self.check()

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was a SIGINT."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True
