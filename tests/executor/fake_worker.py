"""A worker without a model: draws token = 100 * step + row, and misbehaves on request."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.limits import HANG_S
from vllm.device.observer import StepObserver
from vllm.distributed.place import Place
from vllm.errors import LoadError
from vllm.messages.cache import FullAttention, KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.step import StepPlan, StepResult

SPEC = FullAttention(block_size=16, num_kv_heads=2, head_dim=8, value_dim=8, dtype_bytes=4)

# Steps that do not draw tokens.
STEP_RAISES, STEP_KILLED, STEP_EXITS, STEP_SLOW, STEP_HANGS_ON_RANK_0 = 901, 902, 903, 904, 905
STEP_KILLED_ON_RANK_1 = 906


class FinishedStep:
    def __init__(self, result: StepResult | None) -> None:
        self._result = result

    def result(self) -> StepResult | None:
        return self._result


class FakeWorker:
    def __init__(self, config: Any, place: Place) -> None:
        self.config = config
        self.place = place
        self.num_blocks = 0
        self.observer = StepObserver()

    def observe(self, observer: StepObserver) -> None:
        self.observer = observer

    def where(self) -> str:
        return ""

    def launch_shapes(self) -> list[Any] | None:
        return None

    def load(self) -> None:
        if self.config.load_error:
            raise LoadError(self.config.load_error)
        if self.config.dies_loading:
            os.kill(os.getpid(), signal.SIGKILL)

    def facts(self) -> WorkerFacts:
        return WorkerFacts({"layer.0": SPEC}, 1, 2, 3, 100 + self.place.rank, 0.5)

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self.num_blocks = layout.num_blocks

    def execute(self, plan: StepPlan) -> FinishedStep:
        if plan.step == STEP_RAISES:
            raise MemoryError("no memory for this step")
        if plan.step == STEP_KILLED or (
            plan.step == STEP_KILLED_ON_RANK_1 and self.place.rank == 1
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.step == STEP_EXITS:
            os._exit(3)
        if plan.step == STEP_SLOW or (plan.step == STEP_HANGS_ON_RANK_0 and self.place.rank == 0):
            time.sleep(HANG_S)
        if plan.step == STEP_HANGS_ON_RANK_0:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.place.is_driver:
            return FinishedStep(None)
        token_ids = 100 * plan.step + np.flatnonzero(plan.samples).astype(np.int32)
        return FinishedStep(StepResult(plan.step, token_ids))

    def close(self) -> None:
        pass

    def ping(self) -> int:
        return self.place.rank

    def apply_model(self, function: Any) -> Any:
        return self.num_blocks


@dataclass(frozen=True)
class FakeSection:
    pipeline_depth: int = 1


@dataclass(frozen=True)
class FakeConfig:
    """Has the sections of a configuration, and what the worker does beside working."""

    scheduler: FakeSection
    load_error: str = ""
    dies_loading: bool = False
    model: FakeSection = FakeSection()
    cache: FakeSection = FakeSection()
    parallel: FakeSection = FakeSection()
    device: FakeSection = FakeSection()
    load: FakeSection = FakeSection()
    structured_outputs: FakeSection = FakeSection()
    observability: FakeSection = FakeSection()
    expert_balance: FakeSection = FakeSection()


def fake_config(depth: int = 1, load_error: str = "", dies_loading: bool = False) -> Any:
    return FakeConfig(FakeSection(depth), load_error, dies_loading)


def fake_plan(step: int, num_rows: int = 2) -> StepPlan:
    rows = np.arange(num_rows, dtype=np.int32)
    return StepPlan(
        step=step,
        slots=rows + 1,
        starts=rows,
        counts=np.ones(num_rows, np.int32),
        samples=np.ones(num_rows, bool),
        releases=np.empty(0, np.int32),
        admissions=(),
        blocks=np.empty((0, 4), np.int32),
    )
