"""Memory of a process and all it started, read from /proc (elsewhere: zero)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MIB = 1 << 20
KIB_PER_MIB = 1024
INTERVAL_S = 0.25


def tree(pid: int) -> Iterator[int]:
    """The process and its descendants that exist."""
    pending = [pid]
    while pending:
        at = pending.pop()
        yield at
        for path in (PROC / str(at) / "task").glob("*/children"):
            try:
                pending += map(int, path.read_text().split())
            except OSError:
                continue


def resident_mib(pid: int) -> float:
    """Sum of resident sizes; pages that processes share count in each."""
    return sum(_kib(at, "status", "VmRSS:") for at in tree(pid)) / KIB_PER_MIB


def proportional_mib(pid: int) -> float:
    """Sum of proportional sizes: each page once. Walks all pages, so not for use under load."""
    return sum(_kib(at, "smaps_rollup", "Pss:") for at in tree(pid)) / KIB_PER_MIB


def _kib(pid: int, file: str, field: str) -> int:
    try:
        for line in (PROC / str(pid) / file).read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass  # it has ended
    return 0


class Watch:
    """Peak memory of a process tree while it is entered.

    Resident memory is sampled by a thread; the proportional size only where `note` is called.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_rss_mib = 0.0
        self.peak_pss_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    def note(self) -> None:
        self.peak_pss_mib = max(self.peak_pss_mib, proportional_mib(self.pid))

    def figures(self) -> dict[str, float]:
        return {"peak_rss_mib": self.peak_rss_mib, "peak_pss_mib": self.peak_pss_mib}

    def _sample(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.peak_rss_mib = max(self.peak_rss_mib, resident_mib(self.pid))
