"""Ranks that do nothing but compute together: run by test_tensor_parallel and test_stages.

python -m tests.platforms.hpu.meeting FOLDER [STAGES]   prints a JSON line per rank

Each compares what the collectives give with what they must, as ops and traced, and tells when it
multiplied and when its sums were under way. With several stages, each of two ranks, their hidden
states travel meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.limits import HANG_S, wait_until
from vllm.distributed.place import Place, make_places
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.pulse import Pulse
from vllm.executor.ranks import Channel
from vllm.platforms.hpu import bridge, interfaces, modules
from vllm.platforms.hpu.collectives import Hccl
from vllm.platforms.hpu.settings import CollectiveSettings
from vllm.platforms.hpu.stage_link import HcclLink

SIZE = 2
CHUNKS = 3
SETTINGS = CollectiveSettings(
    timeout_s=int(HANG_S), host_timeout_s=0, row_chunks=CHUNKS, row_chunk_threshold=7
)


def shown(rank: int, *shape: int, stage: int = 0) -> Tensor:
    """What this rank of a stage brings along, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(10 * stage + rank))


def check(tp: Hccl, rank: int, stage: int) -> None:
    xs = [shown(i, 8, 6, stage=stage) for i in range(SIZE)]
    x, total = xs[rank], torch.stack(xs).sum(0)

    def traced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        compiled: Callable[..., Tensor] = torch.compile(
            function, backend="hpu_backend", fullgraph=True, dynamic=False
        )
        return compiled

    def twice(rows: Tensor) -> Tensor:
        return rows * 2.0

    # Nothing is traced in lazy mode.
    for wrap in (lambda function: function, traced)[: 1 if bridge.is_lazy() else 2]:
        same(wrap(tp.sum)(x.to("hpu")), total)
        same(wrap(lambda some: tp.begin_sum(some)())(x.to("hpu")), total)
        same(wrap(partial(tp.sum_of, twice))(x.to("hpu")), 2 * total)
        same(wrap(partial(tp.sum_of, twice))(x[:6].to("hpu")), 2 * total[:6])
        same(wrap(tp.sum)(x.t().to("hpu")), total.t())
        same(wrap(tp.gather)(x.to("hpu")), torch.cat(xs, -1))
        same(wrap(tp.gather)(x[:, 1:3].to("hpu")), torch.cat([some[:, 1:3] for some in xs], -1))
        three = [shown(i, 4, 3, 2) for i in range(SIZE)]
        same(wrap(tp.gather)(three[rank].to("hpu")), torch.cat(three, -1))
        same(wrap(tp.scatter_sum)(x.to("hpu")), total.chunk(SIZE)[rank])
    same(tp.scatter_sum(three[rank].to("hpu")), torch.stack(three).sum(0).chunk(SIZE)[rank])
    counts = [[1, 3], [2, 0]]  # rows that a rank has for each
    sent, received = counts[rank], [some[rank] for some in counts]
    parts = [xs[i][: sum(counts[i])].split(counts[i])[rank] for i in range(SIZE)]
    same(tp.exchange(x[: sum(sent)].to("hpu"), sent, received), torch.cat(parts))
    same(tp.broadcast(x.to("hpu"), 1), xs[1])
    base = 10.0 * stage
    assert (tp.agreed(base + rank), tp.least(base + rank)) == (base + 1.0, base)
    assert tp.agreed(2.0**53 - rank) == 2.0**53, "values are rounded"


def check_link(link: HcclLink, place: Place) -> None:
    """Three launches: each stage adds its own to what it received, in one and the same memory."""
    memory = torch.empty(8, 6, device="hpu")
    for launch in range(3):
        expected = torch.zeros(8, 6)
        for stage in range(place.pp.rank):
            expected += shown(place.tp.rank, 8, 6, stage=stage) + launch
        if place.pp.rank > 0:
            link.receive(memory)
            same(memory, expected)
        else:
            memory.zero_()
        memory += shown(place.tp.rank, 8, 6, stage=place.pp.rank).to("hpu") + launch
        if place.pp.rank < place.pp.size - 1:
            link.send(memory)
            memory.fill_(torch.nan)  # as a replay does
    assert link.where() == ""


def same(given: Tensor, expected: Tensor) -> None:
    assert given.device.type == "hpu" and given.shape == expected.shape, (given, expected)
    torch.testing.assert_close(given.cpu(), expected)


def timeline(tp: Hccl, rank: int, folder: Path) -> list[tuple[str, float]]:
    """What this rank did and when. Rank 1 begins its first sum once rank 0 has multiplied twice."""
    events: list[tuple[str, float]] = []

    def note(what: str) -> None:
        events.append((what, time.monotonic()))

    class Noted(Hccl):
        def __init__(self) -> None:
            self.__dict__.update(tp.__dict__)
            self.begun = 0

        def begin_sum(self, x: Tensor) -> Callable[[], Tensor]:
            number, self.begun = self.begun, self.begun + 1
            note(f"sum {number} begins")
            wait = super().begin_sum(x)

            def over() -> Tensor:
                out = wait()
                note(f"sum {number} is over")
                return out

            return over

    products = 0
    weights = shown(0, 6, 6).to("hpu")

    def multiply(rows: Tensor) -> Tensor:
        nonlocal products
        if rank == 1 and products == 0:
            wait_until((folder / "multiplied").exists, "the second product of rank 0")
        product = rows @ weights
        note(f"product {products}")
        if rank == 0 and products == 1:
            (folder / "multiplied").touch()
        products += 1
        return product

    x = shown(rank, 8, 6).to("hpu")
    given = Noted().sum_of(multiply, x)
    same(given, sum(shown(i, 8, 6) for i in range(SIZE)) @ shown(0, 6, 6))
    return events


def main(folder: Path, place: Place, channel: Channel, pulse: Pulse) -> None:
    interfaces.prepare_host_groups(place)
    modules.acquire(place)
    with torch.inference_mode():
        tp = Hccl(place, SETTINGS)
        if place.pp.size > 1:
            link = HcclLink(place, SETTINGS)
            check_link(link, place)
        check(tp, place.tp.rank, place.pp.rank)
        events = timeline(tp, place.rank, folder) if place.pp.size == 1 else []
    channel.put(json.dumps({"rank": place.rank, "events": events}).encode())
    # A rank that ends before all have answered counts as one that died.
    wait_until((folder / "answered").exists, "the answers of all ranks")


def run(folder: Path, num_stages: int = 1) -> None:
    visible = modules.visible_modules(None, bridge.require_devices())
    ranks = LocalRanks(lambda ranks: modules.set_aside(ranks, visible, is_in_process=False))
    places = make_places(SIZE, num_stages)
    ranks.start(partial(main, folder), places, on_wait=lambda: None)
    try:
        answered = 0
        while answered < len(places):
            for _, reply in ranks.ready(HANG_S):
                print(reply.decode(), flush=True)
                answered += 1
        (folder / "answered").touch()
    finally:
        ranks.stop()


if __name__ == "__main__":
    run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
