"""SIGINT and SIGTERM of a server, from before its imports to its last moment.

Imports next to nothing: it takes the signals before the engine is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
STOPPED: Final = 0  # the exit code of a server that was told to end
LAST_WORDS_S: Final = 1.0  # to end by themselves for processes of ours, when nobody waits any more

Action = Callable[[], None]


def leave() -> None:
    """While there is nothing to clean up: an exception would be some import's to catch."""
    kill_children()
    os._exit(STOPPED)


def kill_children() -> None:
    """Whoever waits for them goes on. They leave nothing: theirs end with them."""
    process: Any = sys.modules.get("multiprocessing.process")
    children = process.active_children() if process is not None else ()
    for child in children:
        child.kill()


class StopSignals:
    """Owns how many signals there were, and what the next one does. Used on the main thread."""

    def __init__(self) -> None:
        self.count = 0
        self.is_start_interrupted = False
        self._action: Action = leave
        self._is_over = threading.Event()  # the process goes on to other things

    @contextmanager
    def watched(
        self, signals: Sequence[signal.Signals] = SIGNALS, restore: bool = False
    ) -> Iterator[None]:
        """From here on a signal ends this process with exit code 0, and without a word.

        Without `restore` it stays so until the process has ended.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python takes signals on the main thread alone
            return
        self.count, self.is_start_interrupted, self._action = 0, False, leave
        previous = {number: signal.signal(number, self._take) for number in signals}
        self._is_over.clear()
        try:
            yield
        finally:
            if restore:
                self._is_over.set()
                for number, handler in previous.items():
                    signal.signal(number, handler)
            else:
                self.ending()

    def starting(self) -> None:
        """From here on there is something to clean up: a signal raises KeyboardInterrupt."""
        self._action = self._interrupt

    @contextmanager
    def taken(self, signals: Sequence[signal.Signals], action: Action) -> Iterator[None]:
        """Within, `action` is what a signal does."""
        self._action = action
        previous = {number: signal.signal(number, self._take) for number in signals}
        is_watched = self._take in previous.values()
        if not is_watched:
            self.count = 0
        elif self.count:  # an exception raised in some callbacks is lost: it was told too early
            action()
        try:
            yield
        finally:
            if is_watched:
                self.ending()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def ending(self) -> None:
        """From here on all is bounded, and a signal says that even this takes too long."""
        self._action = self._hurry
        if self.count > 1:
            self._hurry()

    def _interrupt(self) -> None:
        self.is_start_interrupted = True
        self._action = self._hurry
        raise KeyboardInterrupt

    def _hurry(self) -> None:
        self._action = kill_children

        def end() -> None:
            for step in (kill_children, leave):
                if self._is_over.wait(LAST_WORDS_S):
                    return
                step()

        threading.Thread(target=end, name="hurry", daemon=True).start()

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self._action()


stop_signals: Final = StopSignals()
