"""Executors run plans on ranks. One scheduler plans; ranks execute plans, in order."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from vllm.core.kv_cache.spec import AnySpec, KVCacheLayout
from vllm.core.plan import StepPlan, StepResult


class WorkerFacts(msgspec.Struct, frozen=True):
    """What a rank measured once its model was loaded."""

    kv_specs: dict[str, AnySpec]  # by layer name, in layer order
    weight_bytes: int
    activation_bytes: int  # peak of a full step, measured or estimated
    total_bytes: int  # of the device
    free_bytes: int  # after loading
    load_s: float


class ExecutorDied(RuntimeError):
    """A rank is gone: no step can run any more. The message says which and why."""


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

    def call(self, method: str, *args: Any) -> list[Any]:
        """Run `method` of the Worker on every rank (control plane), after the steps queued so far."""
        ...

    def stop(self) -> None: ...
