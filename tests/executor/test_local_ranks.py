from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import pytest

from tests.executor import fake_worker as fake
from tests.executor.fake_worker import FakeWorker, fake_config, fake_plan
from tests.limits import HANG_S, is_running, wait_until
from vllm.distributed.place import make_places
from vllm.errors import LoadError, NotAvailable
from vllm.executor import local_ranks
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.local_ranks import LocalRanks
from vllm.messages.cache import KVCacheLayout, groups_by_needs
from vllm.messages.rank import RankError, failure, revive


def make(num_ranks: int = 1, **config: Any) -> DistributedExecutor:
    places = make_places(num_ranks)
    return DistributedExecutor(fake_config(**config), FakeWorker, LocalRanks(), places)


def processes(executor: DistributedExecutor) -> list[SpawnProcess]:
    assert isinstance(executor.ranks, LocalRanks)
    return executor.ranks.processes


@pytest.fixture(params=[1, 2], ids=["depth1", "depth2"], scope="module")
def executor(request: pytest.FixtureRequest) -> Iterator[DistributedExecutor]:
    executor = make(depth=request.param)
    executor.start()
    yield executor
    executor.stop()


@pytest.fixture
def doomed() -> Iterator[DistributedExecutor]:
    executor = make(depth=2)
    executor.start()
    yield executor
    executor.stop()


def test_ranks_report_facts_bind_the_cache_and_run_steps_in_order(
    executor: DistributedExecutor,
) -> None:
    layout = KVCacheLayout(9, groups_by_needs({"layer.0": fake.SPEC}))
    executor.bind_kv_cache(layout)
    handles = [executor.submit(fake_plan(step, num_rows=3)) for step in range(5)]
    for step in reversed(range(5)):
        np.testing.assert_array_equal(handles[step].result().token_ids, 100 * step + np.arange(3))
    assert handles[2].result().step == 2


def test_calls_are_answered_after_the_steps_queued_before_them(
    executor: DistributedExecutor,
) -> None:
    handle = executor.submit(fake_plan(7))
    assert executor.call("ping") == [0]
    assert handle.result().step == 7


def test_an_unknown_method_and_a_function_are_refused_and_the_rank_goes_on(
    executor: DistributedExecutor,
) -> None:
    with pytest.raises(NotAvailable, match="no method '__init__'"):
        executor.call("__init__")
    for call in (("apply_model", print), (print,)):
        with pytest.raises(NotAvailable, match="distributed-executor-backend uni"):
            executor.call(*call)
    assert executor.call("ping") == [0]


def test_an_error_of_a_step_keeps_its_type_and_shows_where_it_came_from(
    executor: DistributedExecutor,
) -> None:
    failing, following = (executor.submit(fake_plan(s)) for s in (fake.STEP_RAISES, 3))
    with pytest.raises(MemoryError, match="no memory for this step") as caught:
        failing.result()
    assert "fake_worker.py" in str(caught.value.__cause__)
    assert following.result().step == 3


@pytest.mark.parametrize(
    ("step", "reason"),
    [(fake.STEP_KILLED, "killed by SIGKILL"), (fake.STEP_EXITS, "exit code 3")],
    ids=["killed", "exited"],
)
def test_a_dead_rank_fails_every_step_and_says_why(
    doomed: DistributedExecutor, step: int, reason: str
) -> None:
    rank = processes(doomed)[0].pid
    assert rank is not None
    os.kill(rank, signal.SIGSTOP)  # or it may be gone before the second step is sent
    try:
        handles = [doomed.submit(fake_plan(s)) for s in (step, 1)]
    finally:
        os.kill(rank, signal.SIGCONT)
    for handle in handles:
        with pytest.raises(ExecutorDied, match=reason):
            handle.result()
    for use in (lambda: doomed.submit(fake_plan(2)), doomed.check_health):
        with pytest.raises(ExecutorDied, match=reason):
            use()


def test_a_step_sent_to_a_rank_that_died_is_refused_with_the_reason(
    doomed: DistributedExecutor,
) -> None:
    doomed.submit(fake_plan(fake.STEP_KILLED))
    processes(doomed)[0].join(HANG_S)
    for _ in range(2):
        with pytest.raises(ExecutorDied, match="SIGKILL"):
            doomed.submit(fake_plan(1))


def test_health_notices_a_rank_that_dies_while_idle(doomed: DistributedExecutor) -> None:
    doomed.check_health()
    os.kill(processes(doomed)[0].pid or 0, signal.SIGKILL)
    processes(doomed)[0].join(HANG_S)
    with pytest.raises(ExecutorDied, match="SIGKILL"):
        doomed.check_health()


class ForkingWorker(FakeWorker):
    """Leaves a process behind that holds the rank's pipes open."""

    def load(self) -> None:
        if os.fork() == 0:
            time.sleep(1.5)
            os._exit(0)


def test_health_notices_the_death_of_a_rank_whose_pipes_stay_open() -> None:
    executor = DistributedExecutor(fake_config(), ForkingWorker, LocalRanks(), make_places(1))
    executor.start()
    processes(executor)[0].kill()
    processes(executor)[0].join(HANG_S)
    with pytest.raises(ExecutorDied, match="SIGKILL"):
        executor.check_health()
    executor.stop()


def test_a_rank_that_does_not_end_is_terminated_and_then_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_ranks, "_GRACE_S", 0.1)
    executor = make()
    executor.start()
    pid = processes(executor)[0].pid or 0
    os.kill(pid, signal.SIGSTOP)  # SIGTERM waits for what never comes, SIGKILL does not
    executor.stop()
    assert not is_running(pid)


@pytest.mark.parametrize("is_idle", [False, True], ids=["in-a-step", "idle"])
def test_the_death_of_a_rank_that_is_not_the_driver_is_noticed(is_idle: bool) -> None:
    executor = make(num_ranks=2, depth=2)
    executor.start()
    handle = executor.submit(fake_plan(fake.STEP_KILLED_ON_RANK_1))
    processes(executor)[1].join(HANG_S)
    with pytest.raises(ExecutorDied, match=r"rank 1 \(process \d+\) was killed by SIGKILL"):
        if is_idle:
            wait_until(executor.check_health, "the news of the death")
        handle.result()
    executor.stop()


def test_several_ranks_get_every_plan_and_answer_by_rank() -> None:
    executor = make(num_ranks=3)
    try:
        assert [f.free_bytes for f in executor.start()] == [100, 101, 102]
        assert executor.submit(fake_plan(4)).result().step == 4
        assert executor.call("ping") == [0, 1, 2]
    finally:
        executor.stop()


def test_the_death_of_one_rank_is_noticed_while_another_never_answers() -> None:
    executor = make(num_ranks=2)
    executor.start()
    handle = executor.submit(fake_plan(fake.STEP_HANGS_ON_RANK_0))
    with pytest.raises(ExecutorDied, match="rank 1"):
        handle.result()
    executor.stop()


def test_a_model_that_does_not_load_raises_its_own_error_at_start() -> None:
    executor = make(load_error="model.safetensors: truncated")
    with pytest.raises(LoadError, match="truncated"):
        executor.start()
    executor.stop()


def test_a_rank_killed_while_loading_is_reported_at_start() -> None:
    executor = make(dies_loading=True)
    with pytest.raises(ExecutorDied, match="SIGKILL"):
        executor.start()
    executor.stop()


def shared_memory() -> set[str]:
    """Segments by name; semaphores come and go with tests that run beside this one."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def test_stop_ends_ranks_returns_descriptors_and_may_be_repeated() -> None:
    make_one = make()
    make_one.start()  # starts the spawn context's own helper process, which stays
    make_one.stop()
    before = len(os.listdir("/proc/self/fd"))
    segments = shared_memory()
    executor = make(num_ranks=2, depth=2)
    executor.start()
    executor.submit(fake_plan(1))
    pids = [process.pid or 0 for process in processes(executor)]
    executor.stop()
    executor.stop()
    assert not any(map(is_running, pids))
    assert len(os.listdir("/proc/self/fd")) == before
    assert shared_memory() == segments
    with pytest.raises(ExecutorDied, match="stopped"):
        executor.submit(fake_plan(2))


def run_engine(pids: Any, step: int) -> None:
    executor = make()
    executor.start()
    pids.put(processes(executor)[0].pid)
    executor.submit(fake_plan(step)).result()
    time.sleep(HANG_S)


@pytest.mark.parametrize("step", [1, fake.STEP_SLOW], ids=["idle", "in-a-step"])
def test_ranks_die_with_an_engine_that_was_killed(step: int) -> None:
    context = multiprocessing.get_context("spawn")
    pids = context.Queue()
    engine = context.Process(target=run_engine, args=(pids, step))
    engine.start()
    rank_pid = pids.get(timeout=HANG_S)
    time.sleep(0.2)
    engine.kill()
    engine.join()
    wait_until(lambda: not is_running(rank_pid), "the end of the rank after its engine's")


def test_an_error_of_unknown_type_is_named() -> None:
    class Odd(Exception):
        pass

    for odd in (Odd("strange"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")):
        try:
            raise odd
        except (Odd, UnicodeDecodeError) as error:
            revived = revive(failure(error), rank=2)
        assert isinstance(revived, RankError)
        assert str(revived).startswith("rank 2: ") and type(odd).__name__ in str(revived)
