"""Processor time of the parts of a step, for the benchmarks of the host."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

DEVICE = "device"
REST = "rest"


class ThreadParts:
    """Nanoseconds of one thread by part, and how often it entered one."""

    def __init__(self) -> None:
        self.spent_ns: dict[str, int] = {}
        self.num_entries = 0
        self._parts = [REST]
        self._since_ns = time.thread_time_ns()

    def enter(self, name: str) -> None:
        self._account()
        self.num_entries += 1
        self._parts.append(name)

    def leave(self) -> None:
        self._account()
        self._parts.pop()

    def _account(self) -> None:
        now_ns = time.thread_time_ns()
        part = self._parts[-1]
        self.spent_ns[part] = self.spent_ns.get(part, 0) + now_ns - self._since_ns
        self._since_ns = now_ns


class Watch:
    """Processor time of each thread by part. A part that another one calls is not part of that one.

    Processor time, because a thread that waits for the other, or for a processor, does nothing.
    """

    def __init__(self) -> None:
        self.threads: dict[str, ThreadParts] = {}
        self.is_on = False

    def start(self) -> None:
        self.threads.clear()
        self.is_on = True

    def stop(self) -> None:
        self.is_on = False

    @property
    def here(self) -> ThreadParts:
        name = threading.current_thread().name
        parts = self.threads.get(name)
        if parts is None:
            parts = self.threads[name] = ThreadParts()
        return parts

    def parts(self) -> dict[str, int]:
        """Of all threads."""
        names = {name for thread in self.threads.values() for name in thread.spent_ns}
        return {n: sum(t.spent_ns.get(n, 0) for t in self.threads.values()) for n in names}

    def device(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        parts = self.here
        parts.enter(DEVICE)
        try:
            return function(*args, **kwargs)
        finally:
            parts.leave()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Calls of this function are this part, while the watch is on."""
        inner = vars(owner)[name]

        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return inner(*args, **kwargs)
            parts = self.here
            parts.enter(part)
            try:
                return inner(*args, **kwargs)
            finally:
                parts.leave()

        setattr(owner, name, watched)


def cost_of_watching_us(count: int = 10000) -> float:
    """What one entry of a part adds, for the most part to the part that enters."""
    watch = Watch()
    begun_ns = time.thread_time_ns()
    for _ in range(count):
        watch.device(int)
    return (time.thread_time_ns() - begun_ns) / 1000 / count


def spread(values: Sequence[float]) -> list[int]:
    """Median, least, greatest."""
    return [round(f(values)) for f in (statistics.median, min, max)]
