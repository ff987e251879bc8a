"""Blocks of a contiguous cache: where they lie, when they move, and that nobody notices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import LogLines
from tests.platforms.hpu.attention.cases import HostMemory
from vllm.device.attention import GroupTables
from vllm.device.placement import PlacedCache
from vllm.platforms.hpu.defragmentation import (
    SWAP_SIZES,
    ContiguousPlacement,
    choose_swaps,
    copy_blocks,
)

BLOCK_SIZE = 4


class Memory(HostMemory):
    def step_boundary(self) -> None:
        """Everything has happened already."""


def used(num_blocks: int, *places: int) -> np.ndarray:
    flags = np.zeros(num_blocks, bool)
    flags[[0, *places]] = True
    return flags


def test_high_blocks_change_places_with_low_free_ones():
    pairs = choose_swaps(used(20, 2, 18, 19), threshold=0)
    assert pairs.tolist() == [[19, 1], [18, 3]]


@pytest.mark.parametrize(("threshold", "moves"), [(4, True), (5, False)])
def test_holes_up_to_the_threshold_are_tolerated(threshold, moves):
    # 10 places up to the highest, 5 of them in use.
    assert bool(len(choose_swaps(used(30, 1, 2, 3, 9), threshold))) is moves


def test_nothing_moves_in_a_cache_without_holes_or_without_blocks():
    assert not len(choose_swaps(used(10, 1, 2, 3), 0))
    assert not len(choose_swaps(used(10), 0))
    assert not len(choose_swaps(np.ones(10, bool), 0))


def test_swaps_of_one_step_are_bounded_and_leave_no_place_twice():
    flags = np.zeros(4000, bool)
    flags[0] = True
    flags[2000:] = True
    pairs = choose_swaps(flags, 32)
    assert len(pairs) == SWAP_SIZES[-1] and len(np.unique(pairs)) == pairs.size
    assert pairs.dtype == np.int32


@pytest.mark.parametrize("seed", range(20))
def test_swapping_until_nothing_moves_closes_all_holes(seed):
    flags = np.random.default_rng(seed).random(300) < 0.3
    flags[0] = True
    pairs = choose_swaps(flags, 0)
    assert (pairs[:, 0] > pairs[:, 1]).all()
    assert flags[pairs[:, 0]].all() and not flags[pairs[:, 1]].any()
    flags[pairs[:, 0]], flags[pairs[:, 1]] = False, True
    assert flags.sum() == np.flatnonzero(flags)[-1] + 1


@pytest.mark.parametrize("shape", [(2 * 10 * BLOCK_SIZE, 3, 5), (10 * BLOCK_SIZE, 7)])
def test_blocks_that_are_both_source_and_target_arrive_whole(shape):
    cache = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    before = cache.clone().view(-1, 10, BLOCK_SIZE, *shape[1:])
    order = [0, 7, 2, 1, 4, 5, 6, 3, 8, 9]  # 1 -> 3 -> 7 -> 1
    target = torch.tensor([3, 7, 1, 0])
    source = torch.tensor([1, 3, 7, 0])
    copy_blocks(cache, source, target, 10)
    assert torch.equal(cache.view_as(before), before[:, order])


class Requests:
    """Plays scheduler: requests take blocks by id, and every block holds its owner's mark."""

    def __init__(self, placement: ContiguousPlacement, num_blocks: int) -> None:
        self.placement = placement
        self.table = np.zeros((9, 12), np.int32)
        self.cache = torch.zeros(2 * num_blocks * BLOCK_SIZE, 1, 1)
        self.window_table = np.zeros((9, 12), np.int32)
        tables = (
            GroupTables(self.window_table, BLOCK_SIZE, 8),
            GroupTables(self.table, BLOCK_SIZE, None),
        )
        placement.bind(PlacedCache(tables, [self.cache], Memory()))
        self.free = list(range(1, num_blocks))
        self.held: dict[int, list[int]] = {}

    def start(self, slot: int, count: int, generator: np.random.Generator) -> None:
        generator.shuffle(self.free)
        ids = [self.free.pop() for _ in range(count)]
        self.held[slot] = ids
        places = self.placement.place(np.array(ids, np.int32))
        self.table[slot, :count] = places
        self.blocks()[:, places] = (
            torch.arange(slot * 100, slot * 100 + count).view(1, -1, 1).float()
        )

    def end(self, slot: int) -> None:
        self.free += self.held.pop(slot)
        self.placement.release(slot)

    def blocks(self) -> torch.Tensor:
        return self.cache.view(2, -1, BLOCK_SIZE)

    def check(self) -> None:
        for slot, ids in self.held.items():
            places = self.table[slot, : len(ids)]
            assert places.tolist() == self.placement.place(np.array(ids, np.int32)).tolist()
            expected = torch.arange(slot * 100, slot * 100 + len(ids)).view(1, -1, 1).float()
            assert (self.blocks()[:, places] == expected).all()


@pytest.mark.parametrize("threshold", [0, 8])
@pytest.mark.parametrize("seed", range(5))
def test_requests_find_their_blocks_after_any_number_of_moves(seed, threshold):
    generator = np.random.default_rng(seed)
    placement = ContiguousPlacement(100, threshold)
    requests = Requests(placement, 100)
    for _ in range(60):
        slot = int(generator.integers(1, 9))
        if slot in requests.held:
            requests.end(slot)
        requests.start(slot, int(generator.integers(1, 12)), generator)
        placement.tidy()
        requests.check()
        num_used = 1 + sum(map(len, requests.held.values()))
        slots = np.array(list(requests.held), np.int32)
        columns = np.array([len(ids) for ids in requests.held.values()], np.int32)
        assert placement.highest(slots, columns) + 1 <= num_used + threshold
    assert placement.num_swaps > 0
    assert sorted(placement.place(np.arange(100, dtype=np.int32)).tolist()) == list(range(100))


def test_without_a_threshold_blocks_stay():
    placement = ContiguousPlacement(100, None)
    requests = Requests(placement, 100)
    requests.start(1, 5, np.random.default_rng(0))
    placement.tidy()
    assert placement.num_swaps == 0 and placement.place(np.arange(100)).tolist() == [*range(100)]


def test_a_rehearsal_changes_nothing():
    placement = ContiguousPlacement(100, 0)
    requests = Requests(placement, 100)
    requests.start(1, 5, np.random.default_rng(0))
    before = requests.cache.clone()
    placement.rehearse()
    assert torch.equal(requests.cache, before) and placement.num_swaps == 0


def test_windows_and_the_ends_of_tables_do_not_raise_the_highest_block():
    placement = ContiguousPlacement(100, None)
    requests = Requests(placement, 100)
    requests.table[3, :4] = [5, 80, 7, 99]
    requests.window_table[3] = 98
    assert placement.highest(np.array([3]), np.array([3])) == 80
    assert placement.highest(np.array([3, 1]), np.array([1, 4])) == 5


@pytest.mark.parametrize("logs_swaps", [True, False])
def test_moves_are_logged_where_they_are_asked_for(logs_swaps: bool, log_lines: LogLines) -> None:
    placement = ContiguousPlacement(100, 0, logs_swaps)
    requests = Requests(placement, 100)
    requests.free = list(range(50, 90))
    requests.start(1, 5, np.random.default_rng(0))
    placement.tidy()
    placement.tidy()
    assert log_lines.text.count("Defragmentation: ") == logs_swaps
    assert not logs_swaps or "5 of them filled from above, 5 since the start" in log_lines.text
