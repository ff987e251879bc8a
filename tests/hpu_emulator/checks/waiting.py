"""Host synchronisations and asynchronous copies. Run in a process that has the device."""
# ruff: noqa: PLW0108 - a table of one kind of entry

from __future__ import annotations

import habana_frameworks.torch  # noqa: F401 - registers the device
import pytest
import torch
from hpu_emulator import counters, strict, syncs
from hpu_emulator.errors import HostSyncError

HPU = torch.device("hpu")

WAITS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "numpy": lambda x: x.cpu().numpy(),
    "print": lambda x: str(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: torch.unique(x),
    "fallback": lambda x: torch.complex(x, x).abs(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long).to(HPU)),
    "synchronize": lambda x: torch.hpu.synchronize(),
    "stream": lambda x: torch.hpu.current_stream().synchronize(),
    "event": lambda x: recorded().synchronize(),
}
NO_WAITS = {
    "upload": lambda x: torch.ones(3).to(HPU),
    "upload into": lambda x: x.copy_(torch.ones(3), non_blocking=True),
    "new tensor": lambda x: torch.tensor([1, 2], device=HPU),
    "device copy": lambda x: x.clone().copy_(x),
    "where": lambda x: torch.where(x > 1, x, 0),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0),
    "index": lambda x: x[torch.tensor([0, 1]).to(HPU)],
    "topk": lambda x: x.topk(2),
    "shape": lambda x: x.shape[0] + x.stride(0) + x.numel(),
    "query": lambda x: recorded().query(),
    "repeat_interleave": lambda x: x.repeat_interleave(2),
    "asynchronous": lambda x: download(x),
}


def recorded() -> torch.hpu.Event:
    event = torch.hpu.Event()
    event.record()
    return event


def download(x: torch.Tensor) -> torch.Tensor:
    stream, out = torch.hpu.Stream(), torch.empty(x.shape)
    with torch.hpu.stream(stream):
        out.copy_(x, non_blocking=True)
        event = torch.hpu.Event()
        event.record(stream)
    event.synchronize()
    return out


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted_where_it_happens(name):
    x = torch.arange(3.0).to(HPU)
    before = syncs.count()
    WAITS[name](x)
    assert syncs.count() > before
    assert syncs.events()[before].stack[0].file == __file__
    with strict.no_sync(), pytest.raises(HostSyncError, match=r"waiting\.py"):
        WAITS[name](x)
    with strict.no_sync(), strict.allow_sync():
        WAITS[name](x)


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not_counted(name):
    x = torch.arange(3.0).to(HPU)
    before = counters.snapshot()
    with strict.no_sync():
        NO_WAITS[name](x)
    assert counters.since(before).syncs == 0


def test_an_asynchronous_copy_arrives_when_it_is_waited_for_and_no_earlier():
    x = torch.arange(3.0).to(HPU)
    out = torch.zeros(3)
    before = counters.snapshot()
    out.copy_(x, non_blocking=True)
    x.add_(10)
    assert out.tolist() != [0, 1, 2]
    recorded().synchronize()
    assert out.tolist() == [0, 1, 2]
    assert counters.since(before).async_reads == 1
    assert counters.since(before).syncs == 0


def test_an_event_of_another_stream_delivers_nothing():
    x, out, side = torch.arange(3.0).to(HPU), torch.zeros(3), torch.hpu.Stream()
    with torch.hpu.stream(side):
        assert torch.hpu.current_stream() == side
        out.copy_(x, non_blocking=True)
    assert torch.hpu.current_stream() == torch.hpu.default_stream()
    recorded().synchronize()
    assert out.tolist() != [0, 1, 2]
    side.synchronize()
    assert out.tolist() == [0, 1, 2]


def test_a_copy_issued_after_the_event_is_not_covered_by_it():
    x, first, second = torch.arange(3.0).to(HPU), torch.zeros(3), torch.zeros(3)
    first.copy_(x, non_blocking=True)
    event = recorded()
    second.copy_(x, non_blocking=True)
    event.synchronize()
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() != [0, 1, 2]
    torch.hpu.synchronize()
    assert second.tolist() == [0, 1, 2]


def test_events_measure_time_and_streams_wait_for_each_other():
    first, side = torch.hpu.Event(enable_timing=True), torch.hpu.Stream()
    first.record()
    side.wait_stream(torch.hpu.current_stream())
    side.wait_event(first)
    second = side.record_event(torch.hpu.Event(enable_timing=True))
    assert first.elapsed_time(second) >= 0
    assert side.query()
