"""Ranks of the CPU that compute together: exact, in any size, again and again."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.limits import HANG_S
from tests.ops.overrides import isas
from vllm.device.collectives import Collectives
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.distributed.rendezvous import limit_of, meeting
from vllm.platforms.cpu.collectives import SharedMemory
from vllm.platforms.cpu.gloo import Gloo

Kind = Callable[[int, int, str, int], Collectives]  # of rank, size, path, limit in seconds


def shared_memory(rank: int, size: int, path: str, limit_s: int) -> SharedMemory:
    return SharedMemory(Group(rank, size), path, limit_s)


def gloo(rank: int, size: int, address: str, limit_s: int) -> Gloo:
    place = Place(rank, size, rank, tp=Group(rank, size), rendezvous=address)
    limit = limit_of(limit_s)
    return Gloo(meeting(place, limit, "test"), place.tp, limit)


pytestmark = pytest.mark.skipif(not isas(), reason="the kernels were not built")
KINDS = pytest.mark.parametrize("kind", [shared_memory, gloo])

# Below, at and above what goes at a time, and what is shared out.
COUNTS = (1, 7, 1000, 16 * 1024 - 1, 16 * 1024 + 3, (1 << 18) - 5, (1 << 18) + 7, 700_001)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on_ranks(
    size: int,
    run: Callable[[Collectives], object],
    kind: Kind = shared_memory,
    limit_s: int = int(HANG_S),
) -> list[object]:
    """run(collectives) of every rank, each in a thread of its own; by rank."""
    memory = os.memfd_create("ranks")
    path = f"/proc/{os.getpid()}/fd/{memory}"
    try:
        with ThreadPoolExecutor(size) as pool:
            futures = [
                pool.submit(lambda r: run(kind(r, size, path, limit_s)), rank)
                for rank in range(size)
            ]
            return [future.result(HANG_S) for future in futures]
    finally:
        os.close(memory)


def values(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + count)
    return torch.randn(count, generator=generator).to(dtype)


def expected_sum(size: int, count: int, dtype: torch.dtype) -> Tensor:
    """In rank order, in float32, rounded once."""
    total = values(0, count, dtype).float()
    for rank in range(1, size):
        total = total + values(rank, count, dtype).float()
    return total.to(dtype)


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_sums_are_those_of_rank_order_on_every_rank(size, dtype, kind):
    def run(tp: Collectives) -> list[Tensor]:
        return [tp.sum(values(tp.rank, count, dtype)) for count in COUNTS]

    found = on_ranks(size, run, kind)
    for i, count in enumerate(COUNTS):
        expected = expected_sum(size, count, dtype)
        for rank in range(size):
            assert torch.equal(found[rank][i], expected), (rank, count)


@KINDS
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (300, 1001), (2, 400_000), (0, 4), (4,)])
def test_gathered_rows_are_in_rank_order(size, shape, dtype, kind):
    def own(rank: int) -> Tensor:
        generator = torch.Generator().manual_seed(rank)
        return (torch.randn(shape, generator=generator) * 100).to(dtype)

    found = on_ranks(size, lambda tp: tp.gather(own(tp.rank)), kind)
    expected = torch.cat([own(rank) for rank in range(size)], dim=-1)
    assert all(torch.equal(rows, expected) for rows in found)


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 7), (33, 5), (700, 300), (0, 3), (5,)])
def test_each_rank_gets_its_rows_of_a_scattered_sum(size, shape, dtype, kind):
    rows, *rest = shape

    def own(rank: int) -> Tensor:
        count = size * torch.Size(shape).numel()
        return values(rank, count, dtype).view(size * rows, *rest)

    found = on_ranks(size, lambda tp: tp.scatter_sum(own(tp.rank)), kind)
    expected = torch.zeros(size * rows, *rest)
    for rank in range(size):
        expected = expected + own(rank).float()
    for rank, chunk in enumerate(expected.to(dtype).split(rows) if rows else [own(0)] * size):
        assert torch.equal(found[rank], chunk)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("width", [1, 1001])
def test_exchanged_rows_come_in_rank_order(size, width, dtype, kind):
    """As many rows as they like: none, some, and more than a slot holds."""
    counts = [[(7 * i + 3 * j) % 5 * (1 if j else 150) for j in range(size)] for i in range(size)]

    def own(rank: int) -> Tensor:
        rows = sum(counts[rank])
        return torch.arange(rows * width).view(rows, width).add(1000 * rank).to(dtype)

    def run(tp: Collectives) -> Tensor:
        return tp.exchange(own(tp.rank), counts[tp.rank], [row[tp.rank] for row in counts])

    found = on_ranks(size, run, kind)
    for rank in range(size):
        parts = [own(i).split(counts[i])[rank] for i in range(size)]
        assert torch.equal(found[rank], torch.cat(parts))


@KINDS
@pytest.mark.parametrize("source", [0, 2])
@pytest.mark.parametrize("shape", [(3, 5), (700, 601), (0, 2)])
def test_every_rank_gets_what_the_source_has(source, shape, kind):
    def own(rank: int) -> Tensor:
        return torch.full(shape, float(rank + 1), dtype=torch.bfloat16)

    found = on_ranks(3, lambda tp: tp.broadcast(own(tp.rank), source), kind)
    assert all(torch.equal(x, own(source)) for x in found)


@KINDS
def test_the_greatest_is_the_first_of_equals_and_nan_is_no_token(kind):
    inf, nan = torch.inf, torch.nan
    shown = torch.tensor(
        [[1, 3, 2.5, -inf, nan, -inf], [2, 3, -inf, -inf, 5, -2], [-1, 1, 2.5, -inf, 0, -inf]]
    )

    def run(tp: Collectives) -> Tensor:
        ids = torch.arange(6, dtype=torch.int32) + 100 * tp.rank
        return tp.greatest(shown[tp.rank], ids)

    for found in on_ranks(3, run, kind):
        assert found.tolist() == [100, 1, 2, -1, -1, 105]
        assert found.dtype == torch.int32


def test_ranks_of_several_machines_meet_at_an_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"

    def run(rank: int) -> Tensor:
        return gloo(rank, 2, address, int(HANG_S)).sum(torch.ones(3))

    with ThreadPoolExecutor(2) as pool:
        for total in pool.map(run, range(2)):
            assert total.tolist() == [2, 2, 2]


@KINDS
def test_ranks_agree_on_the_greatest_and_the_least(kind):
    def run(tp: Collectives) -> tuple[float, float]:
        return tp.agreed(1.5 + tp.rank), tp.least(1e12 + tp.rank)

    assert on_ranks(3, run, kind) == [(3.5, 1e12)] * 3


@KINDS
def test_what_is_given_need_not_be_dense(kind):
    def run(tp: Collectives) -> list[Tensor]:
        x = torch.arange(12.0).view(3, 4).T
        return [tp.sum(x.clone(memory_format=torch.preserve_format)), tp.gather(x)]

    kept = torch.arange(12.0).view(3, 4).T
    for total, rows in on_ranks(2, run, kind):
        assert torch.equal(total, 2 * kept)
        assert torch.equal(rows, torch.cat((kept, kept), dim=1))


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_that_come_late_are_waited_for(size):
    """Ranks sleep, spin and hurry in turns; a mistake in the order of two areas would show."""

    def run(tp: Collectives) -> list[float]:
        dice, found = random.Random(tp.rank), []
        for step in range(300):
            if dice.random() < 0.1:
                time.sleep(dice.random() / 300)
            count = 1 + step * 97 % 5000
            found.append(tp.sum(torch.full((count,), float(step + tp.rank)))[-1].item())
        return found

    expected = [float(size * step + sum(range(size))) for step in range(300)]
    assert on_ranks(size, run) == [expected] * size


def test_errors_name_what_is_wrong():
    with pytest.raises(RuntimeError, match="rank 2 of 2 ranks"):
        torch.ops.vllm.join_ranks(0, 2, 2, True)
    with pytest.raises(RuntimeError, match="at most 64"):
        torch.ops.vllm.join_ranks(0, 2, 65, True)
    with pytest.raises(RuntimeError, match="no ranks have handle 123456"):
        torch.ops.vllm.sum_over_ranks(torch.ones(1), 123456)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        on_ranks(2, lambda tp: tp.sum(torch.ones(2, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="3 rows, which 2 ranks cannot share evenly"):
        on_ranks(2, lambda tp: tp.scatter_sum(torch.ones(3, 2)))
    with pytest.raises(RuntimeError, match="x has 3 rows, and sent are 2"):
        on_ranks(2, lambda tp: tp.exchange(torch.ones(3, 2), [1, 1], [1, 1]))
    with pytest.raises(RuntimeError, match="rank 2 of 2 ranks cannot be the source"):
        on_ranks(2, lambda tp: tp.broadcast(torch.ones(3), 2))
    with pytest.raises(RuntimeError, match="cannot have"), open("/dev/null") as file:
        torch.ops.vllm.join_ranks(file.fileno(), 0, 2, True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda tp: tp.sum(torch.ones(3)), lambda tp: tp.sum(torch.ones(4))),
        (lambda tp: tp.sum(torch.ones(8)), lambda tp: tp.gather(torch.ones(8, dtype=torch.int8))),
        (lambda tp: tp.sum(torch.ones(8)), lambda tp: tp.sum(torch.ones(8, dtype=torch.half))),
        (lambda tp: tp.broadcast(torch.ones(8), 0), lambda tp: tp.broadcast(torch.ones(8), 1)),
        (lambda tp: tp.sum(torch.ones(4, 2)), lambda tp: tp.scatter_sum(torch.ones(4, 2))),
        (
            lambda tp: tp.exchange(torch.ones(3, 2), [1, 2], [1, 1]),
            lambda tp: tp.sum(torch.ones(6)),
        ),
    ],
)
def test_ranks_that_do_different_things_are_told(first, second):
    def run(tp: Collectives) -> list[str]:
        errors = []
        for _ in range(2):  # and nothing can be computed afterwards
            with pytest.raises(RuntimeError, match="Ranks must run the same launches") as caught:
                (second if tp.rank else first)(tp)
            errors.append(str(caught.value))
        return errors

    for rank, (error, again) in enumerate(on_ranks(2, run)):
        assert f"operation 1: rank {rank} gives" in error
        assert f"rank {1 - rank} gives" in error
        assert again.splitlines()[0] == error.splitlines()[0]


def test_ranks_that_expect_other_rows_than_are_sent_are_told():
    def run(tp: Collectives) -> Tensor:
        return tp.exchange(torch.ones(3, 2), [1, 2], [1, 1] if tp.rank else [1, 2])

    with pytest.raises(RuntimeError, match=r"rank . expects \d+ bytes of rank ., which sends \d+"):
        on_ranks(2, run)


def test_until_steps_begin_a_rank_may_wait_for_as_long_as_another_loads():
    def run(tp: Collectives) -> float:
        if tp.rank:
            time.sleep(1.5)
        return tp.agreed(tp.rank)

    assert on_ranks(2, run, limit_s=1) == [1.0, 1.0]


def test_a_rank_says_for_whom_it_waits_and_gives_up_at_its_limit():
    seen: list[str] = []

    def run(tp: Collectives) -> None:
        tp.steps_begin()
        if tp.rank == 1:
            tp.sum(torch.ones(3))
            return
        tp.sum(torch.ones(3))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(tp.gather, torch.ones(3))
            while not waiting.done():
                seen.append(tp.where())
            waiting.result()

    with pytest.raises(
        RuntimeError,
        match=r"gather 2: waits for rank 1, which did not come within the 1 s of",
    ):
        on_ranks(2, run, limit_s=1)
    assert "gather 2: waits for rank 1" in seen
