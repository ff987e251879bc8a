from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.executor import fake_worker as fake
from tests.executor.fake_worker import FakeWorker, FinishedStep, fake_config, fake_plan
from tests.limits import HANG_S
from vllm.errors import LoadError, NotAvailable
from vllm.executor.in_process import InlineExecutor, ThreadedExecutor
from vllm.messages.cache import KVCacheLayout, groups_by_needs
from vllm.messages.step import StepPlan

KINDS = pytest.mark.parametrize("kind", [InlineExecutor, ThreadedExecutor])


@KINDS
def test_steps_calls_and_cache_reach_the_worker(
    kind: type[InlineExecutor] | type[ThreadedExecutor],
) -> None:
    executor = kind(fake_config(), FakeWorker)
    assert [f.free_bytes for f in executor.start()] == [100]
    executor.bind_kv_cache(KVCacheLayout(9, groups_by_needs({"layer.0": fake.SPEC})))
    handles = [executor.submit(fake_plan(step)) for step in (1, 2)]
    assert executor.call("apply_model", print) == [9]
    assert executor.call(lambda worker, more: worker.num_blocks + more, 1) == [10]
    np.testing.assert_array_equal(handles[1].result().token_ids, [200, 201])
    np.testing.assert_array_equal(handles[0].result().token_ids, [100, 101])
    executor.check_health()
    executor.stop()


@KINDS
def test_errors_reach_the_caller_as_they_are(
    kind: type[InlineExecutor] | type[ThreadedExecutor],
) -> None:
    executor = kind(fake_config(load_error="truncated"), FakeWorker)
    with pytest.raises(LoadError, match="truncated"):
        executor.start()
    with pytest.raises(MemoryError):
        executor.submit(fake_plan(fake.STEP_RAISES)).result()
    with pytest.raises(NotAvailable, match="load"):
        executor.call("load")
    executor.stop()


class WaitingWorker(FakeWorker):
    """Computes a step, in the thread it was made in, when it is told to."""

    may_compute = threading.Event()

    def execute(self, plan: StepPlan) -> FinishedStep:
        assert threading.current_thread().name.startswith("rank-0")
        assert self.may_compute.wait(HANG_S), "the caller waited for the step"
        return super().execute(plan)


def test_a_threaded_rank_computes_while_the_caller_goes_on() -> None:
    executor = ThreadedExecutor(fake_config(depth=2), WaitingWorker)
    executor.start()
    handles = [executor.submit(fake_plan(step)) for step in (1, 2)]
    WaitingWorker.may_compute.set()
    assert [handle.result().step for handle in handles] == [1, 2]
    executor.stop()
    assert not any(t.name.startswith("rank-0") for t in threading.enumerate())
