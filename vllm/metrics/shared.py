"""Metrics of several processes in one: each writes its own into files that any can read and add."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from vllm import envs

# Read by prometheus_client when it is imported: a process cannot begin to share later.
DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def sharing_metrics(directory: str) -> Iterator[None]:
    """Processes started inside share their metrics; this one does not take part.

    They are files in `directory`, which is made, and somebody else's to remove. One that the user
    has named in PROMETHEUS_MULTIPROC_DIR is used instead.
    """
    if is_shared():
        yield
        return
    os.mkdir(directory, 0o700)
    envs.pass_on(DIRECTORY_VARIABLE, directory)
    try:
        yield
    finally:
        envs.pass_on(DIRECTORY_VARIABLE, None)


def is_shared() -> bool:
    return bool(envs.inherited(DIRECTORY_VARIABLE))


def shared_registry() -> CollectorRegistry:
    """What all processes have written so far, added up."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
