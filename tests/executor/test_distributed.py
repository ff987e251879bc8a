"""The executor's protocol, with ranks that are threads: no process is started."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.executor.fake_worker import FakeWorker, FinishedStep, fake_config, fake_plan
from tests.executor.thread_ranks import RankEnds, ThreadRanks
from tests.limits import HANG_S, wait_until
from vllm.distributed.place import make_places
from vllm.errors import LoadError, NotAvailable
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.messages.codec import decoder
from vllm.messages.rank import FromRank, StepDone
from vllm.messages.step import StepPlan

NUM_RANKS = 3
DRIVER = 0

Act = Callable[[], Any]  # what a rank does when it is to begin a step


@contextmanager
def running(
    acts: dict[tuple[int, int], Act] | None = None, depth: int = 2, num_ranks: int = NUM_RANKS
) -> Iterator[tuple[DistributedExecutor, ThreadRanks]]:
    """A started executor whose ranks run `acts` by (rank, step number)."""

    class ActingWorker(FakeWorker):
        def execute(self, plan: StepPlan) -> FinishedStep:
            (acts or {}).get((self.place.rank, plan.step), lambda: None)()
            return super().execute(plan)

    ranks = ThreadRanks()
    executor = DistributedExecutor(fake_config(depth), ActingWorker, ranks, make_places(num_ranks))
    try:
        executor.start()
        yield executor, ranks
    finally:
        executor.stop()


def fail() -> None:
    raise MemoryError("no memory for this step")


def end() -> None:
    raise RankEnds


@pytest.mark.parametrize("depth", [1, 2])
def test_ranks_of_any_kind_start_and_answer_in_order(depth: int) -> None:
    with running(depth=depth) as (executor, _):
        handles = [executor.submit(fake_plan(step)) for step in range(4)]
        assert executor.call("ping") == [0, 1, 2]
        for step in reversed(range(4)):
            np.testing.assert_array_equal(
                handles[step].result().token_ids, 100 * step + np.arange(2)
            )
        executor.check_health()


def test_values_travel_from_the_driver_alone() -> None:
    num_rows = 1000
    with running() as (executor, ranks):
        ranks.replies.clear()
        assert len(executor.submit(fake_plan(1, num_rows)).result().token_ids) == num_rows
        decode = decoder(FromRank).decode
        replies = {rank: reply for rank, reply in ranks.replies if reply is not None}
    assert sorted(replies) == [0, 1, 2] and len(ranks.replies) == NUM_RANKS, "one reply each"
    for rank, reply in replies.items():
        done = decode(reply)
        assert isinstance(done, StepDone)
        assert (done.result is not None) == (rank == DRIVER)
        assert len(reply) >= 4 * num_rows if rank == DRIVER else len(reply) < 40


@pytest.mark.parametrize("depth", [1, 2])
def test_an_error_of_a_rank_without_values_reaches_the_step_it_belongs_to(depth: int) -> None:
    with running({(2, 11): fail}, depth) as (executor, _):
        before, failing, after = (executor.submit(fake_plan(step)) for step in (10, 11, 12))
        assert after.result().step == 12
        with pytest.raises(MemoryError, match="no memory for this step") as caught:
            failing.result()
        assert "test_distributed.py" in str(caught.value.__cause__)
        assert before.result().step == 10
        assert executor.call("ping") == [0, 1, 2], "replies that come later are matched as well"


def test_an_error_of_one_rank_is_raised_while_the_driver_waits_for_that_rank() -> None:
    released = threading.Event()
    acts = {(DRIVER, 5): lambda: released.wait(HANG_S), (1, 5): fail}
    with running(acts) as (executor, _):
        failing = executor.submit(fake_plan(5))
        following = executor.submit(fake_plan(6))
        with pytest.raises(MemoryError):
            failing.result()
        assert not released.is_set()
        released.set()
        assert following.result().step == 6


def test_the_end_of_a_rank_without_values_is_noticed_while_the_driver_waits_for_it() -> None:
    released = threading.Event()
    acts = {(DRIVER, 5): lambda: released.wait(HANG_S), (2, 5): end}
    with running(acts) as (executor, _):
        handle = executor.submit(fake_plan(5))
        with pytest.raises(ExecutorDied, match="rank 2 ended"):
            handle.result()
        assert not released.is_set()
        uses: list[Act] = [
            handle.result,
            executor.check_health,
            lambda: executor.submit(fake_plan(6)),
            lambda: executor.call("ping"),
        ]
        for use in uses:
            with pytest.raises(ExecutorDied, match="rank 2 ended"):
                use()
        released.set()


def test_health_takes_replies_that_come_and_notices_the_end_of_an_idle_rank() -> None:
    may_end = threading.Event()

    def end_later() -> None:
        assert may_end.wait(HANG_S)
        end()

    def everyone_answered(executor: DistributedExecutor, ranks: ThreadRanks) -> bool:
        executor.check_health()
        return min(Counter(rank for rank, _ in ranks.replies).values()) == 3

    with running({(1, 8): end_later}) as (executor, ranks):
        handle = executor.submit(fake_plan(7))
        executor.submit(fake_plan(8))
        wait_until(lambda: everyone_answered(executor, ranks), "all replies up to step 7")
        may_end.set()
        with pytest.raises(ExecutorDied, match="rank 1 ended"):
            wait_until(executor.check_health, "the end of rank 1")
        assert handle.result().step == 7


def test_a_model_that_one_rank_cannot_load_raises_that_rank_s_error_at_start() -> None:
    class Unloadable(FakeWorker):
        def load(self) -> None:
            if self.place.rank == 1:
                raise LoadError("model.safetensors: truncated")

    executor = DistributedExecutor(fake_config(), Unloadable, ThreadRanks(), make_places(NUM_RANKS))
    with pytest.raises(LoadError, match="truncated"):
        executor.start()
    executor.stop()


def test_functions_do_not_travel_without_leave_and_calls_fail_alone() -> None:
    with running() as (executor, ranks):
        ranks.replies.clear()
        with pytest.raises(NotAvailable, match="distributed-executor-backend uni"):
            executor.call("apply_model", print)
        assert not ranks.replies, "nothing was sent"
        with pytest.raises(NotAvailable, match="no method 'load'"):
            executor.call("load")
        assert executor.submit(fake_plan(3)).result().step == 3


def test_a_stopped_executor_refuses_everything_and_may_be_stopped_again() -> None:
    with running(num_ranks=1) as (executor, _):
        executor.stop()
        for use in (executor.check_health, lambda: executor.submit(fake_plan(1))):
            with pytest.raises(ExecutorDied, match="stopped"):
                use()
