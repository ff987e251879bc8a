"""Metrics of several processes in one: each writes its own into files that any can read and add."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from vllm import envs

# Read by prometheus_client when it is imported: a process cannot begin to share later.
DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def sharing_metrics() -> Iterator[None]:
    """Processes started inside share their metrics; this one does not take part.

    A directory that the user has named in PROMETHEUS_MULTIPROC_DIR is used and left.
    """
    if is_shared():
        yield
        return
    directory = tempfile.mkdtemp(prefix="vllm-metrics-")
    envs.pass_on(DIRECTORY_VARIABLE, directory)
    try:
        yield
    finally:
        envs.pass_on(DIRECTORY_VARIABLE, None)
        shutil.rmtree(directory, ignore_errors=True)


def is_shared() -> bool:
    return bool(envs.inherited(DIRECTORY_VARIABLE))


def shared_registry() -> CollectorRegistry:
    """What all processes have written so far, added up."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
