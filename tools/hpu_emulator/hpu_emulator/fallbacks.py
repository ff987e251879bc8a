"""Ops that ran on the host because the device cannot run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

_ops: Counter[str] = Counter()
_listeners: list[Callable[[str], None]] = []


def counts() -> Counter[str]:
    """By operator, since the last reset()."""
    return Counter(_ops)


def total() -> int:
    return _ops.total()


def reset() -> None:
    _ops.clear()


def add_listener(listener: Callable[[str], None]) -> None:
    _listeners.append(listener)


def on_fallback(op: str) -> None:
    _ops[op] += 1
    for listener in _listeners:
        listener(op)
