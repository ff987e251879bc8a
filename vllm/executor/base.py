"""Executors run plans on ranks. One scheduler plans; ranks execute plans, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vllm.messages.cache import KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.step import StepPlan, StepResult

__all__ = ["Executor", "ExecutorDied", "StepHandle", "WorkerFacts"]


class ExecutorDied(RuntimeError):
    """A rank is gone or hangs: no step can run any more. The message says which and why."""


class StepHandle(Protocol):
    def result(self) -> StepResult:
        """Block until the step is done. Raises ExecutorDied, or the rank's own error."""
        ...


class Executor(Protocol):
    def start(self) -> list[WorkerFacts]:
        """Start the ranks and load the model."""
        ...

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        """Allocate the cache, then warm up."""
        ...

    def submit(self, plan: StepPlan) -> StepHandle:
        """Queue a step; returns at once when depth allows overlap."""
        ...

    def call(self, method: str | Callable[..., Any], *args: Any) -> list[Any]:
        """Run the Worker's `method`, or a function of the Worker, on every rank, after the steps
        queued so far."""
        ...

    def check_health(self) -> None:
        """Returns at once. Raises ExecutorDied if a rank is known to be gone, or to hang."""
        ...

    def stop(self) -> None: ...
