"""Where a lazy graph ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from hpu_emulator import _C

logger = logging.getLogger(__name__)

_closures: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
_listeners: list[Callable[[], None]] = []
_has_warned = False


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """Launches what has been recorded; does not wait for the device, also not with `sync`."""
    global _has_warned
    if not _C.is_lazy():
        if not _has_warned:
            _has_warned = True
            logger.warning("mark_step is lazy mode only functionality: nothing is done")
        return
    _C.flush()
    for listener in _listeners:
        listener()
    closures = list(_closures)
    _closures.clear()
    for function, args in closures:
        function(*args)


def iter_mark_step() -> None:
    """mark_step() at the end of an iteration."""
    if _C.is_lazy():
        mark_step()


def add_step_closure(fn: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
    """Calls fn(*args) after the next step; does nothing outside of lazy mode."""
    if _C.is_lazy():
        _closures.append((fn, args))


def add_step_listener(listener: Callable[[], None]) -> None:
    """Called after every step of lazy mode."""
    _listeners.append(listener)
