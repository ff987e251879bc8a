"""Imports of a process of our own, whose modules stay until it ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """What is imported within is not looked through for garbage, neither meanwhile nor later.

    Torch and a server's libraries make a million objects: collections would take a tenth of the
    time of their imports, and as much again in every full one that follows. What little garbage
    imports leave is kept.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
