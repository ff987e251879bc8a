"""How long the executor waits, and what it says; ranks are threads that wait for the test."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.executor.fake_worker import FakeWorker, FinishedStep, fake_config, fake_plan
from tests.executor.thread_ranks import ThreadRanks
from tests.limits import HANG_S, wait_until
from vllm.device.launch import Launch, Phase, ShapeKey, make_launch
from vllm.distributed.place import Place, make_places
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.rank_state import Activity, RankState
from vllm.executor.watchdog import Awaited, Kind, Limits, Watchdog
from vllm.messages.cache import KVCacheLayout
from vllm.messages.step import StepPlan, StepResult

LAYOUT = KVCacheLayout(9, ())
LIMIT_S = 0.5
TICK_S = 0.05


class Script:
    """What the ranks of one test do: `acts` by (rank, phase), until the test's end."""

    def __init__(self) -> None:
        self.acts: dict[tuple[int, str], Callable[[FakeWorker], Any]] = {}
        self.waits: dict[int, str] = {}  # by rank: the collective
        self.released = threading.Event()

    def hang(self, worker: FakeWorker) -> None:
        assert self.released.wait(HANG_S)

    def worker_type(script) -> type[FakeWorker]:
        class Scripted(FakeWorker):
            def _meet(self, phase: str) -> None:
                script.acts.get((self.place.rank, phase), lambda worker: None)(self)

            def where(self) -> str:
                return script.waits.get(self.place.rank, "")

            def load(self) -> None:
                self._meet("load")

            def bind_kv_cache(self, layout: KVCacheLayout) -> None:
                self._meet("warm-up")

            def execute(self, plan: StepPlan) -> FinishedStep:
                self._meet(f"step {plan.step}")
                return super().execute(plan)

            def ping(self) -> int:
                self._meet("call")
                return super().ping()

        return Scripted


@pytest.fixture
def script() -> Script:
    return Script()


@contextmanager
def running(
    script: Script, depth: int = 1, step_s: float = LIMIT_S, ready_s: float = HANG_S
) -> Iterator[DistributedExecutor]:
    limits = Limits(step_s=step_s, ready_s=ready_s, tick_s=TICK_S)
    executor = DistributedExecutor(
        fake_config(depth), script.worker_type(), ThreadRanks(), make_places(3), limits
    )
    try:
        yield executor
    finally:
        script.released.set()
        executor.stop()


def launch(num_rows: int = 4) -> Launch:
    rows = np.arange(num_rows, dtype=np.int32)
    return make_launch(rows + 1, rows, np.ones(num_rows, np.int32), block_size=16)


def launch_and_hang(script: Script) -> Callable[[FakeWorker], None]:
    def act(worker: FakeWorker) -> None:
        worker.observer.launch_begins(launch())
        script.hang(worker)

    return act


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_takes_too_long_names_limit_step_and_the_rank_to_blame_first(
    script: Script, depth: int
) -> None:
    script.waits = {0: "sum 17: waits for rank 1", 2: "sum 17: waits for rank 1"}
    script.acts = {
        (0, "step 5"): launch_and_hang(script),
        (1, "step 5"): launch_and_hang(script),
    }
    with running(script, depth) as executor:
        executor.start()
        assert executor.submit(fake_plan(4)).result().step == 4
        handles = [executor.submit(fake_plan(step)) for step in (5, 6)]
        with pytest.raises(ExecutorDied) as caught:
            handles[0].result()
        assert re.fullmatch(
            r"step 5 took longer than 0\.5 s \(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS\): "
            r"rank 1 \(process \d+\) has not answered: "
            r"in step 5 \(decode\[4x1, 4 blocks\]\) for \d s; "
            r"rank 0 .* has not answered: in step 5 .* for \d s, waiting in a collective "
            r"\(sum 17: waits for rank 1\) for \d s; "
            r"rank 2 .* has answered: (idle|in step 6) .*\. If nothing is wrong with them but "
            r"that they are slow, raise VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS\.",
            str(caught.value),
        )
        for use in (handles[1].result, executor.check_health):
            with pytest.raises(ExecutorDied, match="step 5"):
                use()


def test_values_that_the_device_never_gives_are_named(script: Script) -> None:
    class Pending(FinishedStep):
        def result(self) -> StepResult | None:
            script.hang(None)  # type: ignore[arg-type]
            return super().result()

    class Driver(script.worker_type()):  # type: ignore[misc]
        def execute(self, plan: StepPlan) -> FinishedStep:
            step = super().execute(plan)
            return Pending(step.result()) if self.place.is_driver else step

    script.worker_type = lambda: Driver  # type: ignore[method-assign]
    with running(script, depth=2) as executor:
        executor.start()
        with pytest.raises(
            ExecutorDied, match=r"rank 0 .*has not answered: idle.*values of step 3"
        ):
            executor.submit(fake_plan(3)).result()


def test_a_start_that_takes_too_long_says_what_each_rank_does(script: Script) -> None:
    script.acts = {(2, "load"): script.hang}
    with running(script, ready_s=LIMIT_S) as executor:
        with pytest.raises(ExecutorDied) as caught:
            executor.start()
        assert re.match(
            r"the ranks did not load the model within 0\.5 s \(VLLM_ENGINE_READY_TIMEOUT_S\): "
            r"rank 2 \(process \d+\) has not answered: loading the model for \d s; rank 0 ",
            str(caught.value),
        )


@pytest.mark.parametrize("phase", ["warm-up", "call"])
def test_warm_up_and_calls_in_which_all_wait_for_each_other_end(script: Script, phase: str) -> None:
    script.acts = {(1, phase): script.hang, (2, phase): script.hang}
    script.waits = {1: "sum 3: waits for rank 2", 2: "gather 3: waits for rank 1"}
    with running(script, ready_s=2.0) as executor:
        executor.start()
        with pytest.raises(ExecutorDied, match=r"waited for each other.*sum 3.*gather 3"):
            executor.bind_kv_cache(LAYOUT) if phase == "warm-up" else executor.call("ping")


def test_health_is_bad_once_a_step_takes_too_long(script: Script) -> None:
    script.acts = {(1, "step 1"): script.hang}
    with running(script) as executor:
        executor.start()
        executor.submit(fake_plan(1))
        with pytest.raises(ExecutorDied, match="step 1"):
            wait_until(executor.check_health, "the limit")


@pytest.mark.parametrize("phase", ["load", "warm-up", "step 1", "call"])
def test_an_error_of_one_of_several_ranks_names_it_and_keeps_its_type(
    script: Script, phase: str
) -> None:
    def fail(worker: FakeWorker) -> None:
        raise MemoryError("too small")

    script.acts = {(1, phase): fail, (0, phase): script.hang}
    with (
        running(script, step_s=HANG_S) as executor,
        pytest.raises(MemoryError, match=r"^rank 1: too small$"),
    ):
        executor.start()
        executor.bind_kv_cache(LAYOUT)
        executor.submit(fake_plan(1)).result()
        executor.call("ping")


def test_an_error_of_the_only_rank_is_as_it_was() -> None:
    class Failing(FakeWorker):
        def __init__(self, config: Any, place: Place) -> None:
            raise MemoryError("too small")

    executor = DistributedExecutor(fake_config(), Failing, ThreadRanks(), make_places(1))
    with pytest.raises(MemoryError, match=r"^too small$"):
        executor.start()
    executor.stop()


# -- what counts ----------------------------------------------------------------------------------


def state(rank: int, activity: Activity, collective: str = "", answer: Any = None) -> RankState:
    """In everything for an hour."""
    long_ago_s = time.monotonic() - 3600
    return RankState(
        rank=rank,
        pid=100 + rank,
        beat_s=long_ago_s,
        activity=activity,
        step=3,
        since_s=long_ago_s,
        shape=ShapeKey(Phase.DECODE, 4, 1, 8),
        answering=None if answer is None else 3,
        answering_since_s=long_ago_s,
        is_answer_compiled=answer == "compiled",
        collective=collective,
        collective_since_s=long_ago_s,
    )


def ends(kind: Kind, states: list[RankState], missing: set[int]) -> bool:
    """Whether the watchdog gives up a request of which the limit has passed."""
    watchdog = Watchdog(Limits(step_s=10, ready_s=10))
    try:
        for _ in range(11):
            watchdog.look("a request", Awaited(kind, 3), missing, states, 1.0)
    except ExecutorDied:
        return True
    return False


BUSY, COMPILING = state(0, Activity.STEP), state(0, Activity.COMPILING)
WARM, MEASURING = state(0, Activity.WARMING_UP), state(0, Activity.MEASURING)
IDLE, LOADING = state(0, Activity.IDLE), state(0, Activity.LOADING)
STUCK = state(1, Activity.STEP, "sum 17: waits for rank 0")


@pytest.mark.parametrize(
    ("kind", "first", "ends_it"),
    [
        (Kind.STEP, BUSY, True),
        (Kind.STEP, COMPILING, False),
        (Kind.STEP, state(0, Activity.COMPILING, "sum 17: waits for rank 1"), True),
        (Kind.STEP, state(0, Activity.IDLE, answer="compiled"), False),
        (Kind.STEP, state(0, Activity.IDLE, answer="prepared"), True),
        (Kind.STEP, WARM, False),
        (Kind.START, LOADING, True),
        (Kind.START, MEASURING, False),
        (Kind.START, state(0, Activity.STARTING), True),
        (Kind.WARM_UP, WARM, False),
        (Kind.WARM_UP, state(0, Activity.WARMING_UP, "gather 2: waits for rank 1"), True),
        (Kind.CALL, state(0, Activity.CALL), False),
        (Kind.CALL, state(0, Activity.CALL, "gather 2: waits for rank 1"), True),
    ],
)
def test_what_a_rank_does_decides_whether_time_counts(
    kind: Kind, first: RankState, ends_it: bool
) -> None:
    assert ends(kind, [first, STUCK], {0, 1}) == ends_it


def test_a_rank_that_has_answered_is_not_waited_for_in_a_call() -> None:
    assert ends(Kind.CALL, [IDLE, STUCK], {1})
    assert not ends(Kind.CALL, [IDLE, STUCK], {0, 1})


def test_a_short_wait_in_a_collective_is_no_hang() -> None:
    now_s = time.monotonic()
    fields = {name: getattr(STUCK, name) for name in RankState.__slots__}
    fresh = RankState(**{**fields, "collective_since_s": now_s + HANG_S})
    assert not ends(Kind.CALL, [IDLE, fresh], {1})


def test_each_step_has_the_whole_limit_and_a_start_is_one() -> None:
    states = [BUSY, STUCK]
    watchdog = Watchdog(Limits(step_s=10, ready_s=10))
    for step in range(5):
        for _ in range(10):
            watchdog.look(step, Awaited(Kind.STEP, step), {0, 1}, states, 1.0)
    for _ in range(6):
        watchdog.look(5, Awaited(Kind.STEP, 5), {0, 1}, states, 1.0)
    with pytest.raises(ExecutorDied, match="step 5"):
        for _ in range(6):
            watchdog.look(5, Awaited(Kind.STEP, 5), {0, 1}, states, 1.0)
    watchdog = Watchdog(Limits(step_s=10, ready_s=10))
    with pytest.raises(ExecutorDied, match="load the model within 10 s"):
        for request in ("join", "load"):
            for _ in range(6):
                watchdog.look(request, Awaited(Kind.START, -1), {0, 1}, [LOADING, STUCK], 1.0)
