"""The timeline of a process: spans and counters, for Perfetto."""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from vllm.envs import Environment
from vllm.logger import init_logger
from vllm.profiling.directory import trace_directory
from vllm.profiling.trace_file import TraceFile

logger = init_logger(__name__)

_FLUSH_S: Final = 0.5

Arguments = Mapping[str, str | int | float]
_NONE: Final[Arguments] = {}


class Timeline(ABC):
    """Any thread may record. Times are nanoseconds of time.perf_counter_ns."""

    is_on: bool

    @abstractmethod
    def span(self, track: str, name: str, begin_ns: int, arguments: Arguments = _NONE) -> None:
        """Something lasted from `begin_ns` to now. Spans of one track nest, or do not overlap."""

    @abstractmethod
    def begin(self, name: str, key: int, arguments: Arguments = _NONE) -> None:
        """Something begins that may overlap others of its name; `end` with the same key ends it."""

    @abstractmethod
    def end(self, name: str, key: int) -> None: ...

    @abstractmethod
    def count(self, name: str, values: Mapping[str, int | float]) -> None:
        """Values from now on."""

    @abstractmethod
    def flush(self) -> None:
        """Write what has been recorded so far."""


class NullTimeline(Timeline):
    is_on = False

    def span(self, track: str, name: str, begin_ns: int, arguments: Arguments = _NONE) -> None:
        pass

    def begin(self, name: str, key: int, arguments: Arguments = _NONE) -> None:
        pass

    def end(self, name: str, key: int) -> None:
        pass

    def count(self, name: str, values: Mapping[str, int | float]) -> None:
        pass

    def flush(self) -> None:
        pass


class FileTimeline(Timeline):
    """Recording appends to memory; a thread writes twice a second."""

    is_on = True

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._pid = os.getpid()
        self._file = TraceFile(path)
        self._events: deque[dict[str, Any]] = deque()
        self._tracks: dict[str, int] = {}
        self._lock = threading.Lock()  # of the file, and of new tracks
        self._stopping = threading.Event()
        self._meta("process_name", 0, f"vllm {self._pid} on {socket.gethostname()}")
        threading.Thread(target=self._run, name="timeline", daemon=True).start()

    def span(self, track: str, name: str, begin_ns: int, arguments: Arguments = _NONE) -> None:
        lasted_ns = time.perf_counter_ns() - begin_ns
        tid = self._tracks.get(track) or self._new_track(track)
        self._events.append(
            {
                "ph": "X",
                "name": name,
                "ts": begin_ns / 1000,
                "dur": lasted_ns / 1000,
                "pid": self._pid,
                "tid": tid,
                "args": arguments,
            }
        )

    def begin(self, name: str, key: int, arguments: Arguments = _NONE) -> None:
        self._async("b", name, key, arguments)

    def end(self, name: str, key: int) -> None:
        self._async("e", name, key, _NONE)

    def count(self, name: str, values: Mapping[str, int | float]) -> None:
        self._events.append(
            {
                "ph": "C",
                "name": name,
                "ts": time.perf_counter_ns() / 1000,
                "pid": self._pid,
                "args": values,
            }
        )

    def flush(self) -> None:
        with self._lock:
            events = [self._events.popleft() for _ in range(len(self._events))]
            self._file.write(events)

    def close(self) -> None:
        self._stopping.set()
        self.flush()
        with self._lock:
            self._file.close()

    def _run(self) -> None:
        while not self._stopping.wait(_FLUSH_S):
            self.flush()

    def _async(self, phase: str, name: str, key: int, arguments: Arguments) -> None:
        self._events.append(
            {
                "ph": phase,
                "cat": name,
                "name": name,
                "id": key,
                "ts": time.perf_counter_ns() / 1000,
                "pid": self._pid,
                "args": arguments,
            }
        )

    def _new_track(self, track: str) -> int:
        with self._lock:
            if track not in self._tracks:
                tid = len(self._tracks) + 1
                self._meta("thread_name", tid, track)
                self._tracks[track] = tid
            return self._tracks[track]

    def _meta(self, kind: str, tid: int, name: str) -> None:
        self._events.append(
            {"ph": "M", "name": kind, "pid": self._pid, "tid": tid, "args": {"name": name}}
        )


def process_timeline(env: Environment | None = None) -> Timeline:
    """The one of this process, which VLLM_PROFILER_ENABLED turns on. Raises ConfigError."""
    env = env or Environment()
    if not env.VLLM_PROFILER_ENABLED:
        return NullTimeline()
    return _opened(trace_directory(env) or Path.cwd(), os.getpid())


@cache
def _opened(directory: Path, pid: int) -> Timeline:
    """One per directory: engine core and rank share it where they share a process."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    path = directory / f"vllm-{moment}-{pid}.trace.json"
    try:
        timeline = FileTimeline(path)
    except OSError as error:
        logger.warning("No timeline is recorded (VLLM_PROFILER_ENABLED): %s", error)
        return NullTimeline()
    atexit.register(timeline.flush)
    logger.info("Timeline of this process: %s (open it with ui.perfetto.dev)", path)
    return timeline
