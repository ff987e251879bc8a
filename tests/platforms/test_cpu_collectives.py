"""Ranks that compute together through shared memory: exact, in any size, again and again."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.limits import HANG_S
from tests.ops.overrides import isas
from vllm.distributed.groups import Group
from vllm.platforms.cpu.collectives import SharedMemory

pytestmark = pytest.mark.skipif(not isas(), reason="the kernels were not built")

# Below, at and above what goes at a time, and what is shared out.
COUNTS = (1, 7, 1000, 16 * 1024 - 1, 16 * 1024 + 3, (1 << 18) - 5, (1 << 18) + 7, 700_001)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on_ranks(size: int, run: Callable[[SharedMemory], object]) -> list[object]:
    """run(collectives) of every rank, each in a thread of its own; by rank."""
    memory = os.memfd_create("ranks")
    try:
        path = f"/proc/{os.getpid()}/fd/{memory}"
        ranks = [SharedMemory(Group(rank, size), path) for rank in range(size)]
    finally:
        os.close(memory)
    with ThreadPoolExecutor(size) as pool:
        return [future.result(HANG_S) for future in [pool.submit(run, rank) for rank in ranks]]


def values(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + count)
    return torch.randn(count, generator=generator).to(dtype)


def expected_sum(size: int, count: int, dtype: torch.dtype) -> Tensor:
    """In rank order, in float32, rounded once."""
    total = values(0, count, dtype).float()
    for rank in range(1, size):
        total = total + values(rank, count, dtype).float()
    return total.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_sums_are_those_of_rank_order_on_every_rank(size, dtype):
    def run(tp: SharedMemory) -> list[Tensor]:
        return [tp.sum(values(tp.rank, count, dtype)) for count in COUNTS]

    found = on_ranks(size, run)
    for i, count in enumerate(COUNTS):
        expected = expected_sum(size, count, dtype)
        for rank in range(size):
            assert torch.equal(found[rank][i], expected), (rank, count)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (300, 1001), (2, 400_000), (0, 4), (4,)])
def test_gathered_rows_are_in_rank_order(size, shape, dtype):
    def own(rank: int) -> Tensor:
        generator = torch.Generator().manual_seed(rank)
        return (torch.randn(shape, generator=generator) * 100).to(dtype)

    found = on_ranks(size, lambda tp: tp.gather(own(tp.rank)))
    expected = torch.cat([own(rank) for rank in range(size)], dim=-1)
    assert all(torch.equal(rows, expected) for rows in found)


def test_what_was_given_is_left_alone_and_need_not_be_dense():
    def run(tp: SharedMemory) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.arange(12.0).view(3, 4).T
        kept = x.clone()
        return tp.sum(x), x, kept

    for total, x, kept in on_ranks(2, run):
        assert torch.equal(x, kept)
        assert torch.equal(total, 2 * kept)


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_that_come_late_are_waited_for(size):
    """Ranks sleep, spin and hurry in turns; a mistake in the order of two areas would show."""

    def run(tp: SharedMemory) -> list[float]:
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
        torch.ops.vllm.join_ranks(0, 2, 2)
    with pytest.raises(RuntimeError, match="at most 64"):
        torch.ops.vllm.join_ranks(0, 2, 65)
    with pytest.raises(RuntimeError, match="no ranks have handle 123456"):
        torch.ops.vllm.sum_over_ranks(torch.ones(1), 123456)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        on_ranks(2, lambda tp: tp.sum(torch.ones(2, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="cannot have"), open("/dev/null") as file:
        torch.ops.vllm.join_ranks(file.fileno(), 0, 2)
