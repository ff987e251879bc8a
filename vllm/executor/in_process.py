"""The executor that runs one rank in the engine's own process.

Nothing limits the time of a step here, and nobody looks for signs of life: what would hang is this
process itself, of which front ends have the core's heartbeat.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vllm.distributed.place import ALONE, Place
from vllm.executor.base import ExecutorDied, StepHandle
from vllm.executor.control import Method, WorkerType, invoke
from vllm.executor.ranks import SetAside, no_devices
from vllm.messages.cache import KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.step import StepPlan, StepResult

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


class InlineExecutor:
    """Runs everything where it is called; `submit` returns when the device work is queued."""

    def __init__(
        self,
        config: VllmConfig,
        worker_type: WorkerType,
        devices: SetAside = no_devices,
        place: Place = ALONE,
    ) -> None:
        self._config = config
        self._place = place
        self._worker_type = worker_type
        self._devices = devices
        self._closing = ExitStack()

    def start(self) -> list[WorkerFacts]:
        (device,) = self._closing.enter_context(self._devices([0]))
        self._worker = self._worker_type(self._config, replace(self._place, device=device))
        self._closing.callback(self._worker.close)
        self._worker.load()
        return [self._worker.facts()]

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._worker.bind_kv_cache(layout)

    def submit(self, plan: StepPlan) -> StepHandle:
        # The only rank is the driver, whose answer has values.
        return cast(StepHandle, self._worker.execute(plan))

    def call(self, method: Method, *args: Any) -> list[Any]:
        return [invoke(self._worker, method, args)]

    def check_health(self) -> None:
        """Nothing can be wrong that the caller would not have seen."""

    def stop(self) -> None:
        self._closing.close()


class ThreadedExecutor:
    """Runs the rank in a thread of its own, so that the host plans the next step meanwhile.

    Native ops release the interpreter lock, which is what makes the overlap real. Everything of the
    rank happens in that one thread, in the order of the calls.
    """

    def __init__(
        self,
        config: VllmConfig,
        worker_type: WorkerType,
        devices: SetAside = no_devices,
        place: Place = ALONE,
    ) -> None:
        self._inline = InlineExecutor(config, worker_type, devices, place)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rank-0")
        self._is_stopping = False

    def start(self) -> list[WorkerFacts]:
        return self._thread.submit(self._inline.start).result()

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._thread.submit(self._inline.bind_kv_cache, layout).result()

    def submit(self, plan: StepPlan) -> StepHandle:
        return ThreadedStep(self._thread.submit(self._run, plan))

    def call(self, method: Method, *args: Any) -> list[Any]:
        return self._thread.submit(self._inline.call, method, *args).result()

    def check_health(self) -> None:
        """A step's failure reaches the caller with its result."""

    def stop(self) -> None:
        """Steps still in flight are given up."""
        if self._is_stopping:
            return
        self._is_stopping = True
        try:
            # A profile can only be ended by the thread that began it.
            self._thread.submit(self._inline.stop)
        except RuntimeError:  # the interpreter exits, and has ended all threads
            self._inline.stop()
        self._thread.shutdown(wait=True)

    def _run(self, plan: StepPlan) -> StepHandle:
        if self._is_stopping:
            raise ExecutorDied("the executor was stopped")
        return self._inline.submit(plan)


class ThreadedStep:
    """A step queued on the rank's thread."""

    def __init__(self, future: Future[StepHandle]) -> None:
        self._future = future

    def result(self) -> StepResult:
        return self._future.result().result()
