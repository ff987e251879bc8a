"""Threads that compile, and what a call costs one: processor time, to which others add nothing."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, Generic, TypeVar

# The libraries recurse as deep as a form is nested or its rules refer to each other, and end the
# process at the end of the stack: 128 Ki characters need less than 64 MiB of this. Only what is
# used becomes memory.
STACK_BYTES: Final = 128 * 2**20
# Of threads that were given up, how many run on beside those that work for others.
MAX_GIVEN_UP: Final = 8
LOWEST_PRIORITY: Final = 19

T = TypeVar("T")


class Meter:
    """Processor time of one thread since `start`; any thread may read it."""

    def __init__(self) -> None:
        self._clock: int | None = None
        self._start_s = 0.0

    def start(self) -> None:
        """Count the calling thread from here on."""
        clock = time.pthread_getcpuclockid(threading.get_ident())
        self._start_s = time.clock_gettime(clock)
        self._clock = clock

    def spent_s(self) -> float:
        if self._clock is None:
            return 0.0
        try:
            return time.clock_gettime(self._clock) - self._start_s
        except OSError:  # the thread has ended
            return 0.0


class Job(Generic[T]):
    """A call that waits for a thread, runs in one, or has run."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self.meter = Meter()  # started by the call, where its own cost begins
        self.native_id: int | None = None
        self.is_over_budget = False
        self.is_given_up = False
        self._call = call

    def run(self) -> None:
        self.native_id = threading.get_native_id()
        try:
            result = self._call()
        except BaseException as error:  # a panic of Rust is not an Exception
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Threads:
    """`count` threads that work, made as they are needed.

    A call cannot be interrupted. One that costs more than the budget is given up: it runs on at the
    lowest priority, and another thread takes over from its own.
    """

    def __init__(self, count: int, name: str, budget_s: float) -> None:
        self.budget_s = budget_s
        self._count = count
        self._name = name
        self._lock = threading.Condition()
        self._queue: deque[Job[object]] = deque()
        self._num_working = 0
        self._num_idle = 0
        self._num_given_up = 0
        self._is_stopped = False
        self._running: set[Job[object]] = set()
        _pools.add(self)

    def submit(self, call: Callable[[], T]) -> Job[T]:
        job = Job(call)
        with self._lock:
            self._queue.append(job)  # type: ignore[arg-type]  # of any result
            if self._num_idle >= len(self._queue):
                self._lock.notify()
            else:
                self._add_thread()
        return job

    def tend(self) -> None:
        """Give up what costs too much, whoever asked for it."""
        with self._lock:
            for job in self._running:
                if not job.is_over_budget and job.meter.spent_s() > self.budget_s:
                    job.is_over_budget = True
                    self._give_up(job)

    def _give_up(self, job: Job[object]) -> None:
        if self._num_given_up >= MAX_GIVEN_UP:
            return
        job.is_given_up = True
        self._num_given_up += 1
        self._num_working -= 1
        if self._queue:
            self._add_thread()
        # It does not end before it has the lock.
        assert job.native_id is not None
        os.setpriority(os.PRIO_PROCESS, job.native_id, LOWEST_PRIORITY)

    def stop(self) -> None:
        """Begin nothing more, and wait for nothing."""
        with self._lock:
            self._is_stopped = True
            for job in self._queue:
                job.future.cancel()
            self._queue.clear()
            self._lock.notify_all()

    def finish(self) -> None:
        """Stop, and wait for what runs."""
        self.stop()
        for job in list(self._running):
            wait([job.future])

    def _add_thread(self) -> None:
        if self._is_stopped or self._num_working == self._count:
            return
        self._num_working += 1
        usual = threading.stack_size(STACK_BYTES)
        try:
            # Idle ones do not keep the process; those in a library must not meet its end.
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        finally:
            threading.stack_size(usual)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            with self._lock:
                self._running.discard(job)
                if job.is_given_up:
                    self._num_given_up -= 1
                    return

    def _next(self) -> Job[object] | None:
        with self._lock:
            self._num_idle += 1
            while not (self._queue or self._is_stopped):
                self._lock.wait()
            self._num_idle -= 1
            if not self._queue:
                return None
            job = self._queue.popleft()
            self._running.add(job)
            return job


_pools: weakref.WeakSet[Threads] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    """A thread that leaves a library while the interpreter ends would abort the process."""
    for pool in list(_pools):
        pool.finish()
