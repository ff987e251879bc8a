"""Host synchronisations: who made the host wait for the device."""

from __future__ import annotations

from dataclasses import dataclass

from hpu_emulator import frames, strict
from hpu_emulator.errors import HostSyncError

ASYNC_READ = "async_read"


@dataclass(frozen=True, slots=True)
class Sync:
    kind: str  # item, copy to host, data-dependent shape, cpu_fallback, event, stream, device
    op: str
    num_bytes: int
    stack: tuple[frames.Frame, ...]

    def __str__(self) -> str:
        return f"{self.kind} ({self.op}){frames.text(self.stack)}"


_events: list[Sync] = []
_num_async_reads = 0


def events() -> list[Sync]:
    """All since the last reset(), in order; asynchronous reads are not among them."""
    return list(_events)


def count() -> int:
    return len(_events)


def async_reads() -> int:
    """Waits for events that were recorded after non-blocking copies to the host."""
    return _num_async_reads


def reset() -> None:
    global _num_async_reads
    _events.clear()
    _num_async_reads = 0


def on_sync(kind: str, op: str, num_bytes: int) -> None:
    global _num_async_reads
    if kind == ASYNC_READ:
        _num_async_reads += 1
        return
    sync = Sync(kind, op, num_bytes, frames.here())
    _events.append(sync)
    if strict.is_sync_forbidden():
        raise HostSyncError(f"the host waits for the device: {sync}")
