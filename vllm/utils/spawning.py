"""Starting processes of our own."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

from vllm.utils.output import STDERR, STDOUT, forgive

_DEATH_SIGNAL: Final = 1  # of prctl(2)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Start a process here: no signal comes in between, and none reaches it in its first moments.

    Ctrl-C goes to all processes of a terminal, and one that is only beginning would answer it with
    a traceback. The new one begins with signals held back: it says what they mean to it, and then
    calls `begin_process`.
    """
    resource_tracker.ensure_running()  # started in between, it would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_process() -> None:
    """What was held back comes now; and output that fails is no reason to end."""
    forgive(STDOUT, STDERR)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def killed_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends, also if it is stopped.

    Only where that thread lives as long as its process.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_DEATH_SIGNAL, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
