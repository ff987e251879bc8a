"""Streams and events.

Work on all streams of the emulated device is done in the order of its issue. Only copies to the
host take time: a non-blocking one arrives when its event, its stream or the device is waited for.
"""

from __future__ import annotations

from types import TracebackType

import torch
from habana_frameworks.torch.hpu.device import Device, index_of
from hpu_emulator import _C


class Stream(torch.Stream):
    def __new__(cls, device: Device = None, priority: int = 0, **known: int) -> Stream:
        """A new stream; `priority` has no effect on a Gaudi. `known` names one that exists."""
        if known:
            return super().__new__(cls, **known)
        return super().__new__(cls, device=torch.device("hpu", index_of(device)))

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: torch.Event) -> None:
        event.wait(self)


class Event(torch.Event):
    def __new__(cls, enable_timing: bool = False, blocking: bool = False) -> Event:
        return super().__new__(cls, torch.device("hpu"), enable_timing=enable_timing)

    def elapsed_time(self, end_event: torch.Event) -> float:
        """Milliseconds."""
        return float(_C.elapsed_ms(self.event_id, end_event.event_id))


class StreamContext:
    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self._before = 0

    def __enter__(self) -> None:
        if self.stream is not None:
            self._before = _C.exchange_stream(self.stream.stream_id)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream is not None:
            _C.exchange_stream(self._before)


def stream(stream: torch.Stream | None) -> StreamContext:
    """Makes a stream current for a block."""
    return StreamContext(stream)


def set_stream(stream: torch.Stream) -> None:
    _C.exchange_stream(stream.stream_id)


def current_stream(device: Device = None) -> Stream:
    return _known(_C.current_stream(), device)


def default_stream(device: Device = None) -> Stream:
    return _known(0, device)


def _known(stream_id: int, device: Device) -> Stream:
    kind = torch.Stream(device=torch.device("hpu")).device_type
    return Stream(stream_id=stream_id, device_index=index_of(device), device_type=kind)
