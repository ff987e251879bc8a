"""Strict switches: what a Gaudi does silently is raised where it happens.

Each switch is set by HPU_EMULATOR_STRICT for the whole process, or by a context manager.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpu_emulator.settings import SWITCHES

_depth = dict.fromkeys(SWITCHES, 0)
_allowed_syncs = 0


def is_strict(switch: str) -> bool:
    return _depth[switch] > 0


def is_sync_forbidden() -> bool:
    return _depth["no_sync"] > 0 and _allowed_syncs == 0


@contextmanager
def strict(*switches: str) -> Iterator[None]:
    """For the whole process, also for its other threads, until the block ends."""
    if unknown := set(switches) - set(SWITCHES):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(SWITCHES)}")
    for switch in switches:
        _depth[switch] += 1
    try:
        yield
    finally:
        for switch in switches:
            _depth[switch] -= 1


def enable(switch: str) -> None:
    _depth[switch] += 1


@contextmanager
def no_sync() -> Iterator[None]:
    """Raises HostSyncError where the host waits for the device or reads from it.

    A copy to the host that does not block, and the wait for the event recorded after it, are
    allowed: they are counted as asynchronous reads.
    """
    with strict("no_sync"):
        yield


@contextmanager
def allow_sync() -> Iterator[None]:
    """Lifts no_sync() for one block."""
    global _allowed_syncs
    _allowed_syncs += 1
    try:
        yield
    finally:
        _allowed_syncs -= 1


@contextmanager
def no_compilation() -> Iterator[None]:
    """Raises RecompilationError for a recipe that is not known, naming the nearest known one."""
    with strict("no_compile"):
        yield


@contextmanager
def checked_indices() -> Iterator[None]:
    """Raises IndexRangeError for an index outside of its dimension."""
    with strict("index"):
        yield
