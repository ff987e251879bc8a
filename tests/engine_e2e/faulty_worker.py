"""A worker that a signal meets in a phase of its life, and engines that run it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from tests.limits import HANG_S
from vllm.config.vllm import VllmConfig
from vllm.distributed.place import Place, make_places
from vllm.engine import core
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.local_ranks import LocalRanks
from vllm.messages.cache import KVCacheLayout
from vllm.messages.step import StepPlan
from vllm.worker.ends.launch_end import StepAnswer
from vllm.worker.worker import Worker

FAULT: Final = "TEST_FAULT"  # variable: rank, phase and what happens
# A signal, or `raise`, `hang` or `nothing`.
MET: Final = "TEST_FAULT_MET"  # variable: a file for the time at which it happens, where it is set


def fault(rank: int, phase: str, what: str) -> str:
    return f"{rank} {phase} {what}"


class FaultyWorker(Worker):
    """The fault happens in the middle of the phase: after other ranks may have begun to wait."""

    def __init__(self, config: VllmConfig, place: Place) -> None:
        self.place = place
        self._meet("joining")
        super().__init__(config, place)

    def load(self) -> None:
        self._meet("loading")
        super().load()

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._meet("warm-up")
        super().bind_kv_cache(layout)

    def execute(self, plan: StepPlan) -> StepAnswer:
        if plan.step >= 2:
            self._meet("step")
        return super().execute(plan)

    def _meet(self, phase: str) -> None:
        rank, faulty, what = os.environ.get(FAULT, "-1 never nothing").split()
        if self.place.rank != int(rank) or phase != faulty:
            return
        met = os.environ.get(MET)
        if met and not os.path.exists(met):
            Path(met + "~").write_text(str(time.monotonic()))
            os.rename(met + "~", met)
        if what == "raise":
            raise MemoryError(f"no memory for {phase}")
        if what == "hang":
            time.sleep(HANG_S)
            return
        if what != "nothing":
            os.kill(os.getpid(), signal.Signals[what])


def faulty_executor(config: VllmConfig) -> DistributedExecutor:
    parallel = config.parallel
    places = make_places(parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    return DistributedExecutor(config, FaultyWorker, LocalRanks(), places)


def faulty_core(config: VllmConfig) -> core.EngineCore:
    """For a core in a process of its own."""
    core.make_executor = faulty_executor  # type: ignore[assignment]
    return core.EngineCore(config)
