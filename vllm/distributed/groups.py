"""A rank's position among ranks that share work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Position `rank` among `size` ranks that share one kind of work."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, (self.rank, self.size)


SINGLE = Group(rank=0, size=1)
