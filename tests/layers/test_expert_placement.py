"""Where experts are put, and how they move there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vllm.errors import ConfigError
from vllm.layers.expert_placement import TURNS, Loads, Move, Placement, Spot, moves, wanted_copies
from vllm.layers.expert_shard import balanced_placement
from vllm.layers.shapes import UnevenShares

# Experts, ranks, redundant ones.
SIZES = [
    (128, 8, 0),
    (128, 8, 16),
    (256, 32, 32),
    (256, 8, 5),
    (60, 7, 5),
    (8, 2, 2),
    (8, 4, 4),
    (8, 4, 24),
    (6, 4, 3),
    (4, 4, 0),
]


def skewed(num_experts: int, slope: float, seed: int = 0) -> Loads:
    """Choices as Zipf's law has them."""
    loads = (1e6 / np.arange(1, num_experts + 1) ** slope).astype(np.int64)
    shuffled: Loads = np.random.default_rng(seed).permutation(loads)
    return shuffled


def check(placement: Placement) -> None:
    assert all(len(set(experts)) == len(experts) for experts in placement.held), placement.held
    assert placement.copies().min() >= 1
    sizes = [len(experts) for experts in placement.held]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("rule", ["linear", "round_robin"])
@pytest.mark.parametrize(("experts", "ranks", "redundant"), SIZES)
def test_every_expert_is_somewhere_and_nowhere_twice_after_every_move(
    experts: int, ranks: int, redundant: int, rule: str
) -> None:
    placement = balanced_placement(experts, ranks, rule, redundant)
    check(placement)
    for slope, seed in itertools.product((0, 0.7, 1.5, 4), range(3)):
        for move in moves(placement, skewed(experts, slope, seed)):
            placement.apply(move)
            check(placement)
    assert placement.copies().sum() == experts + redundant


@pytest.mark.parametrize("slope", [0.5, 1, 1.5])
@pytest.mark.parametrize(
    ("experts", "ranks", "redundant", "limit"),
    # Few copies on many ranks are shares too coarse to be dealt out evenly.
    [(128, 8, 16, 1.03), (256, 32, 32, 1.25), (256, 8, 5, 1.03), (60, 7, 5, 1.2)],
)
def test_skewed_loads_are_balanced_with_copies(
    experts: int, ranks: int, redundant: int, limit: float, slope: float
) -> None:
    placement = balanced_placement(experts, ranks, "linear", redundant)
    loads = skewed(experts, slope)
    before = placement.rank_loads(loads)
    for move in moves(placement, loads):
        placement.apply(move)
    after = placement.rank_loads(loads)
    copies = wanted_copies(loads, experts + redundant, ranks)
    # No placement is better than the mean, nor than the busiest copy alone.
    least = max(after.mean(), (loads * 65536 // copies).max())
    assert after.max() <= limit * least
    assert after.max() < 0.9 * before.max()


def test_without_copies_whole_experts_are_balanced() -> None:
    placement = balanced_placement(128, 8, "linear", 0)
    loads = skewed(128, 0.5)
    for move in moves(placement, loads):
        assert move.swaps, "no expert has a copy"
        placement.apply(move)
    after = placement.rank_loads(loads)
    assert after.max() < 1.03 * after.mean()


def test_what_is_balanced_stays_where_it_is() -> None:
    placement = balanced_placement(64, 4, "linear", 8)
    loads = skewed(64, 1)
    first = moves(placement, loads)
    for move in first:
        placement.apply(move)
    assert first and moves(placement, loads) == []
    # What changes a little moves little.
    busier = loads.copy()
    alone = next(expert for expert in placement.held[2] if placement.copies()[expert] == 1)
    busier[alone] += int(loads.mean() * 3)
    again = moves(placement, busier)
    assert 0 < sum(move.num_transfers for move in again) < len(first)


def test_nothing_moves_for_loads_of_nothing() -> None:
    assert moves(balanced_placement(8, 2, "linear", 2), np.zeros(8, np.int64)) == []


def test_copies_go_to_the_experts_with_the_greatest_load_per_copy() -> None:
    copies = wanted_copies(np.array([100, 60, 10, 0]), num_places=7, most=3)
    assert copies.tolist() == [3, 2, 1, 1]


def test_a_copy_takes_the_place_of_one_that_is_not_needed() -> None:
    placement = Placement(3, [[0, 1], [2, 0]])
    assert moves(placement, np.array([10, 90, 20])) == [Move(Spot(0, 1), Spot(1, 1))]


def test_room_is_made_for_a_copy_where_none_can_go() -> None:
    """All copies that are not needed are on ranks that have the busy expert already."""
    placement = Placement(5, [[0, 1], [0, 1], [2, 3], [4, 0]])
    for move in moves(placement, np.array([1000, 1, 1, 1, 1])):
        placement.apply(move)
        check(placement)
    assert placement.copies().tolist() == [4, 1, 1, 1, 1]


def test_busy_experts_of_one_rank_are_exchanged() -> None:
    placement = Placement(4, [[0, 1], [2, 3]])
    (move,) = moves(placement, np.array([50, 40, 5, 5]))
    placement.apply(move)
    assert sorted(placement.rank_loads(np.array([50, 40, 5, 5])) >> 16) == [45, 55]


def test_copies_take_turns_and_experts_begin_with_different_ones() -> None:
    placement = Placement(3, [[0, 1], [1, 0], [2, 1]])
    turns = placement.turns()
    assert turns.shape == (3, TURNS)
    assert turns[0, :4].tolist() == [0, 1, 0, 1]
    assert turns[1, :4].tolist() == [1, 2, 0, 1]
    assert set(turns[2].tolist()) == {2}
    for row in turns:
        shares = np.bincount(row)
        assert np.ptp(shares[shares > 0]) <= 1


def test_what_does_not_fit_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--num-redundant-experts 9: 3 ranks .* 4 .* with 8\."):
        balanced_placement(4, 3, "linear", 9)
    with pytest.raises(UnevenShares, match="5 ranks"):
        balanced_placement(4, 5, "linear", 3)
