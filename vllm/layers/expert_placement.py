"""Where the experts of a layer are, copies of busy ones included, and how they should move.

A rank has a fixed number of places, with one expert each. Moves change what is in the places, one
or two at a time, so that every expert is somewhere after each of them. Everything is computed in
whole numbers: ranks on different machines come to the same moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Loads = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Choices of an expert go to its copies in turn, by the row of the token: see `turns`.
TURNS: Final = 64
_SCALE: Final = 1 << 16  # of loads, so that shares of copies are whole numbers
_LEAST_GAIN: Final = 100  # an exchange takes more than 1 / 100 of the mean load off a rank
_WORTHWHILE: Final = 50  # all moves together take more than 1 / 50 off the greatest load


@dataclass(frozen=True, slots=True)
class Spot:
    """A place of a rank."""

    rank: int
    place: int


@dataclass(frozen=True, slots=True)
class Move:
    """What is in `source` comes to `target` as well; with `swaps`, what was there to `source`."""

    source: Spot
    target: Spot
    swaps: bool = False

    @property
    def num_transfers(self) -> int:
        return 1 + self.swaps


class Placement:
    """Which expert of a layer is in which place. Mutable; the layer's owner moves it."""

    def __init__(self, num_experts: int, held: Sequence[Sequence[int]]) -> None:
        """`held`: of each rank the experts in its places, none twice."""
        self.num_experts = num_experts
        self.held = [list(experts) for experts in held]

    @classmethod
    def initial(
        cls, num_experts: int, base: Sequence[Sequence[int]], num_redundant: int
    ) -> Placement:
        """`base`, of each rank the experts it has anyway, and more copies of those with fewest.

        Ranks have equally many places, or the first ones one more. Of `base` that must be so too.
        """
        each, over = divmod(num_experts + num_redundant, len(base))
        placement = cls(num_experts, base)
        copies = [1] * num_experts
        for rank, experts in enumerate(placement.held):
            while len(experts) < each + (rank < over):
                others = (expert for expert in range(num_experts) if expert not in experts)
                chosen = min(others, key=lambda expert: copies[expert])
                experts.append(chosen)
                copies[chosen] += 1
        return placement

    def copies(self) -> Numbers:
        """Of each expert the number of places that it is in."""
        return np.bincount([*itertools.chain(*self.held)], minlength=self.num_experts)

    def spots(self, expert: int) -> list[Spot]:
        """Where an expert is, by rank."""
        return [
            Spot(rank, experts.index(expert))
            for rank, experts in enumerate(self.held)
            if expert in experts
        ]

    def expert_in(self, spot: Spot) -> int:
        return self.held[spot.rank][spot.place]

    def apply(self, move: Move) -> None:
        source, target = move.source, move.target
        moved, replaced = self.expert_in(source), self.expert_in(target)
        self.held[target.rank][target.place] = moved
        if move.swaps:
            self.held[source.rank][source.place] = replaced

    def turns(self) -> Numbers:
        """[experts, TURNS]: the rank that computes an expert for a token whose row is a turn.

        Copies take turns, and experts begin with different ones, or a single token would find the
        first copies only.
        """
        table = np.empty((self.num_experts, TURNS), np.int64)
        for expert in range(self.num_experts):
            ranks = [spot.rank for spot in self.spots(expert)]
            table[expert] = [ranks[(expert + turn) % len(ranks)] for turn in range(TURNS)]
        return table

    def rank_loads(self, loads: Loads) -> Loads:
        """What each rank computes of `loads`, [experts], where copies share alike. Scaled."""
        shares = _shares(loads, self.copies())
        return np.array([shares[experts].sum() for experts in self.held], np.int64)


def moves(placement: Placement, loads: Loads) -> list[Move]:
    """What to do, in order, so that ranks have as much to compute; nothing if that gains little.

    `loads` [experts]: how often each was chosen. Copies go to the experts with the greatest load
    per copy; then experts of the busiest rank change places with others, for as long as that
    helps. So what is well placed stays where it is. `placement` is not changed.
    """
    plan = _Plan(placement, loads)
    before = int(plan.ranks.max())
    found = [*plan.copying(), *plan.swapping()]
    return found if (before - int(plan.ranks.max())) * _WORTHWHILE > before else []


def wanted_copies(loads: Loads, num_places: int, most: int) -> Numbers:
    """Of each expert as many copies as make the greatest load per copy least; `most` of one."""
    copies = np.ones(len(loads), np.int64)
    scaled = loads * _SCALE
    for _ in range(num_places - len(loads)):
        per_copy = np.where(copies < most, scaled // copies, -1)
        copies[per_copy.argmax()] += 1
    return copies


class _Plan:
    """A placement as arrays over all places, on which moves are tried."""

    def __init__(self, placement: Placement, loads: Loads) -> None:
        held = placement.held
        self._loads = loads
        self._spots = [
            Spot(rank, place) for rank, experts in enumerate(held) for place in range(len(experts))
        ]
        self._rank_of = np.array([spot.rank for spot in self._spots])
        self._experts = np.array([*itertools.chain(*held)])
        self._has = np.zeros((len(held), placement.num_experts), np.bool_)
        self._has[self._rank_of, self._experts] = True
        self._set_shares()

    def copying(self) -> Iterator[Move]:
        """Copies for experts that lack some, in places of experts with more than they need."""
        num_ranks = len(self._has)
        wanted = wanted_copies(self._loads, len(self._spots), min(num_ranks, TURNS))
        while True:
            copies = self._has.sum(0)
            lacking = np.flatnonzero(copies < wanted)
            busiest_first = lacking[np.argsort(-self._shares[lacking], kind="stable")]
            move = self._next_copy(busiest_first.tolist(), copies > wanted)
            if move is None:
                return
            yield move

    def swapping(self) -> Iterator[Move]:
        """Exchanges between the busiest rank and another, each the one that helps both most."""
        num_ranks = len(self._has)
        least_gain = max(1, int(self.ranks.sum()) // (num_ranks * _LEAST_GAIN))
        while True:
            busiest = int(self.ranks.argmax())
            own = np.flatnonzero(self._rank_of == busiest)
            ours, theirs = self._experts[own][:, None], self._experts[None]
            moved = self._shares[ours] - self._shares[theirs]  # [own places, all places]
            greater = np.maximum(
                self.ranks[busiest] - moved, self.ranks[self._rank_of][None] + moved
            )
            # No rank has an expert twice; that leaves out exchanges within the rank as well.
            is_double = self._has[busiest, theirs] | self._has[self._rank_of[None], ours]
            greater[is_double] = self.ranks[busiest]
            first, other = divmod(int(greater.argmin()), len(self._spots))
            if self.ranks[busiest] - greater[first, other] <= least_gain:
                return
            yield self._swap(int(own[first]), other, int(moved[first, other]))

    def _next_copy(self, lacking: Sequence[int], has_surplus: Flags) -> Move | None:
        for expert in lacking:
            number = self._place_for(expert, has_surplus)
            if number >= 0:
                return self._copy(expert, number)
        for expert in lacking:
            move = self._make_room(expert, has_surplus)
            if move is not None:
                return move
        return None

    def _make_room(self, expert: int, has_surplus: Flags) -> Move | None:
        """Bring a copy that is not needed, all of which are beside `expert`, to another rank."""
        here = np.flatnonzero(has_surplus[self._experts])
        there = np.flatnonzero(~self._has[self._rank_of, expert])
        if not len(here) or not len(there):
            return None
        ours, theirs = self._experts[here][:, None], self._experts[there][None]
        is_double = self._has[self._rank_of[here][:, None], theirs]
        is_double |= self._has[self._rank_of[there][None], ours]
        moved = self._shares[ours] - self._shares[theirs]
        price = np.where(is_double, -1, np.abs(moved))
        if price.max() < 0:
            return None
        price[price < 0] = price.max() + 1
        first, second = divmod(int(price.argmin()), len(there))
        return self._swap(int(here[first]), int(there[second]), int(moved[first, second]))

    def _place_for(self, expert: int, has_surplus: Flags) -> int:
        """On the rank that is least busy without what goes from there; -1 if there is none."""
        fits = has_surplus[self._experts] & ~self._has[self._rank_of, expert]
        if not fits.any():
            return -1
        after = self.ranks[self._rank_of] - self._shares[self._experts]
        return int(np.where(fits, after, after.max() + 1).argmin())

    def _copy(self, expert: int, number: int) -> Move:
        source = int(np.flatnonzero(self._experts == expert)[0])
        rank = self._rank_of[number]
        self._has[rank, self._experts[number]] = False
        self._has[rank, expert] = True
        self._experts[number] = expert
        self._set_shares()
        return Move(self._spots[source], self._spots[number])

    def _swap(self, first: int, second: int, moved: int) -> Move:
        for here, there in ((first, second), (second, first)):
            rank = self._rank_of[here]
            self._has[rank, self._experts[here]] = False
            self._has[rank, self._experts[there]] = True
        self._experts[[first, second]] = self._experts[[second, first]]
        self.ranks[self._rank_of[first]] -= moved
        self.ranks[self._rank_of[second]] += moved
        return Move(self._spots[first], self._spots[second], swaps=True)

    def _set_shares(self) -> None:
        self._shares = _shares(self._loads, self._has.sum(0))
        self.ranks = self._has @ self._shares


def _shares(loads: Loads, copies: Numbers) -> Loads:
    """What one copy of each expert computes. Scaled."""
    return loads * _SCALE // copies
