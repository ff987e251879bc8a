"""Ranks that are stopped, or in which nothing runs any more, are noticed in every phase."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.executor.fake_worker import FakeConfig, FakeSection, FakeWorker, FinishedStep, fake_plan
from tests.limits import HANG_S, is_running, wait_until
from vllm.distributed.place import Place, make_places
from vllm.executor import local_ranks, silence
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.rank_state import Activity, RankState
from vllm.executor.ranks import RankMain
from vllm.executor.shm_queue import broadcast_queue
from vllm.executor.silence import Silence
from vllm.executor.watchdog import Limits
from vllm.messages.cache import KVCacheLayout
from vllm.messages.step import StepPlan

LAYOUT = KVCacheLayout(9, ())
PHASES = {
    "starting": "starting",
    "joining": "joining the other ranks",
    "loading": "loading the model",
    "warm-up": "warming up",
    "step": "in step 3",
    "idle": "idle",
}


@dataclass(frozen=True)
class HangConfig(FakeConfig):
    """What rank 1 does in a phase: a method of HangingWorker. Rank 0 then waits, as for rank 1."""

    phase: str = ""
    act: str = "stop"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The first that a rank reads."""
        self.__dict__.update(state)
        name = multiprocessing.current_process().name
        if self.phase == "starting" and name == "vllm-rank-1":
            os.kill(os.getpid(), signal.SIGSTOP)


class HangingWorker(FakeWorker):
    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._meet("joining")

    def load(self) -> None:
        self._meet("loading")

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        self._meet("warm-up")

    def execute(self, plan: StepPlan) -> FinishedStep:
        if plan.step == 3:
            self._meet("step")
        return super().execute(plan)

    def _meet(self, phase: str) -> None:
        if phase == self.config.phase:
            if self.place.rank == 1:
                getattr(self, self.config.act)()
            else:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(HANG_S)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def sleep_with_the_lock(self) -> None:
        ctypes.PyDLL(None).sleep(int(HANG_S))

    def compute_with_the_lock(self) -> None:
        """For seconds, in which no other thread of the process runs Python."""
        began_s = time.process_time()
        while time.process_time() - began_s < 2.0:
            re.match(r"(?:a+)+$", "a" * 26 + "b")


class OnlyRank1Hangs(HangingWorker):
    def _meet(self, phase: str) -> None:
        if self.place.rank == 1:
            super()._meet(phase)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "STOPPED_S", 0.6)
    # Ranks whose executor knows that one hangs are not given time.
    monkeypatch.setattr(local_ranks, "_GRACE_S", HANG_S)


def make(
    phase: str = "",
    act: str = "stop",
    depth: int = 1,
    worker_type: type[HangingWorker] = HangingWorker,
) -> DistributedExecutor:
    config = HangConfig(FakeSection(depth), phase=phase, act=act)
    limits = Limits(step_s=HANG_S, ready_s=HANG_S, tick_s=0.1)
    return DistributedExecutor(
        config,  # type: ignore[arg-type]
        worker_type,
        NotedRanks(),
        make_places(2),
        limits,
    )


@pytest.fixture
def executor() -> Iterator[DistributedExecutor]:
    """One whose ranks do no more than they are asked for."""
    executor = make(depth=2)
    try:
        executor.start()
        executor.bind_kv_cache(LAYOUT)
        yield executor
    finally:
        executor.stop()


class NotedRanks(LocalRanks):
    """Knows the processes that there were."""

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        super().start(main, places, on_wait)
        self.pids = [process.pid or 0 for process in self.processes]


def pids_of(executor: DistributedExecutor) -> list[int]:
    assert isinstance(executor.ranks, NotedRanks)
    return executor.ranks.pids


def run(executor: DistributedExecutor) -> None:
    """All phases, and then idle for ever."""
    executor.start()
    executor.bind_kv_cache(LAYOUT)
    for step in range(5):
        executor.submit(fake_plan(step)).result()
    wait_until(lambda: executor.ranks.states(0.0)[1].activity is Activity.IDLE)
    os.kill(pids_of(executor)[1], signal.SIGSTOP)
    wait_until(executor.check_health, "the news")


@pytest.mark.parametrize(("phase", "depth"), [*((phase, 1) for phase in PHASES), ("step", 2)])
def test_a_stopped_rank_is_named_in_every_phase_and_the_others_are_killed(
    phase: str, depth: int
) -> None:
    executor = make(phase, depth=depth)
    with pytest.raises(ExecutorDied) as caught:
        run(executor)
    pids = pids_of(executor)
    said = rf"rank 1 \(process {pids[1]}\) was stopped by a signal: no sign of life for \d+ s\. "
    assert re.fullmatch(f"{said}It was {PHASES[phase]}", str(caught.value))
    assert not any(map(is_running, pids)), "at once, also the one that waits"
    for use in (executor.check_health, lambda: executor.submit(fake_plan(9))):
        with pytest.raises(ExecutorDied, match="rank 1"):
            use()
    executor.stop()


def test_a_rank_in_which_nothing_runs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENT_S", 1.5)
    executor = make("step", "sleep_with_the_lock")
    with pytest.raises(ExecutorDied, match=r"rank 1 .* hangs: no sign of life .* It was in step 3"):
        run(executor)
    executor.stop()
    assert not any(map(is_running, pids_of(executor)))


def test_a_rank_that_computes_in_native_code_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever thread of it has the interpreter's lock."""
    monkeypatch.setattr(silence, "SILENT_S", 1.0)
    executor = make("loading", "compute_with_the_lock", worker_type=OnlyRank1Hangs)
    try:
        executor.start()
        assert executor.submit(fake_plan(1)).result().step == 1
    finally:
        executor.stop()


def test_sending_more_than_a_stopped_rank_can_take_ends(executor: DistributedExecutor) -> None:
    os.kill(pids_of(executor)[1], signal.SIGSTOP)
    with pytest.raises(ExecutorDied, match=r"rank 1 .* stopped"):
        executor.call("ping", bytes(9 << 20))


def test_a_rank_that_goes_on_in_time_is_not_missed(
    executor: DistributedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "STOPPED_S", HANG_S)
    os.kill(pids_of(executor)[1], signal.SIGSTOP)
    handle = executor.submit(fake_plan(1))
    timer = threading.Timer(1.0, os.kill, (pids_of(executor)[1], signal.SIGCONT))
    timer.start()
    assert handle.result().step == 1
    timer.join()


def test_a_message_whose_rest_never_comes_does_not_hold_its_reader() -> None:
    writer, (reader,) = broadcast_queue(1)
    writer._put_fragment(memoryview(b"the first part"), more=True)

    def on_wait() -> None:
        raise ExecutorDied("rank 0 was stopped")

    with pytest.raises(ExecutorDied):
        reader.get(on_wait=on_wait)
    for end in (writer, reader):
        end.close()


def run_engine(pids: Any) -> None:
    executor = make()
    executor.start()
    for pid in pids_of(executor):
        pids.put(pid)
    time.sleep(HANG_S)


def test_a_stopped_rank_ends_with_an_engine_that_was_killed() -> None:
    """It cannot notice itself that the engine is gone."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    engine = context.Process(target=run_engine, args=(queue,))
    engine.start()
    pids = [queue.get(timeout=HANG_S) for _ in range(2)]
    os.kill(pids[1], signal.SIGSTOP)
    engine.kill()
    engine.join()
    wait_until(lambda: not any(map(is_running, pids)), "the end of both ranks")


# -- silence --------------------------------------------------------------------------------------


def state(beat_s: float) -> RankState:
    return RankState(0, 1, beat_s, Activity.IDLE, 0, 0.0, None, None, 0.0, False, "", 0.0)


@pytest.fixture
def child() -> Iterator[int]:
    """A process that sleeps."""
    with subprocess.Popen(["sleep", str(HANG_S)]) as process:
        wait_until(lambda: silence.process_state(process.pid) == "S", "its sleep")
        try:
            yield process.pid
        finally:
            process.kill()


Look = Callable[[float, float], str]


@pytest.fixture
def look(child: int, monkeypatch: pytest.MonkeyPatch) -> Look:
    monkeypatch.setattr(silence, "STOPPED_S", 5.0)
    silent = Silence()
    return lambda beat_s, lapse_s: silent.look(state(beat_s), child, lapse_s)


def test_a_process_that_is_silent_for_long_hangs_unless_it_never_began(look: Look) -> None:
    assert all(look(0.0, 1.0) == "" for _ in range(600)), "it imports a program"
    assert look(7.0, 1.0) == ""
    assert all(look(7.0, 1.0) == "" for _ in range(60))
    assert all(look(7.5, 1.0) == "" for _ in range(60))
    assert "hangs: no sign of life for" in [look(7.5, 1.0) for _ in range(3)][-1]


def test_a_stopped_process_has_five_seconds(look: Look, child: int) -> None:
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: silence.process_state(child) == "T", "the stop")
    assert look(7.0, 1.0) == ""
    assert all(look(7.0, 1.0) == "" for _ in range(5))
    assert "was stopped by a signal: no sign of life for 6 s" in look(7.0, 1.0)
    assert look(8.0, 1.0) == "", "it goes on"
