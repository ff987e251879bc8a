"""Starting processes of our own."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

from vllm.utils.output import STDERR, STDOUT, forgive

PREFIX: Final = "vllm-"  # of the names of our processes
IMPORTED_EXIT: Final = 75  # exit code of a process of ours whose program starts an engine on import
IMPORTED: Final = (
    "this program starts an engine when it is imported, and the engine's own processes have to "
    "import it. Put what the program does into a function, and call that under: "
    "if __name__ == '__main__':"
)
_DEATH_SIGNAL: Final = 1  # of prctl(2)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


_has_begun = False


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


def refuse_while_imported() -> None:
    """Ends this process, if it is one of ours that imports the program: it would start another."""
    if multiprocessing.current_process().name.startswith(PREFIX) and not _has_begun:
        sys.exit(IMPORTED_EXIT)


def begin_process() -> None:
    """What was held back comes now; and output that fails is no reason to end."""
    global _has_begun
    _has_begun = True
    forgive(STDOUT, STDERR)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def killed_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends, also if it is stopped.

    Only where that thread lives as long as its process.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_DEATH_SIGNAL, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
