"""Which experts of a layer a rank has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vllm.errors import ConfigError
from vllm.layers.expert_placement import Placement
from vllm.layers.shapes import ShardInfo, UnevenShares

NOT_HERE: Final = -1  # the local id of an expert that other ranks have
ALONE: Final = ShardInfo()


@dataclass(frozen=True, slots=True)
class ExpertShard:
    """The experts of one layer that a rank computes.

    An expert has an id in its layer and, on ranks that have it, a local id: its place in `owned`.
    """

    num_experts: int  # of the layer
    owned: tuple[int, ...]  # ids in the layer, in the order in which the rank stores them
    width: ShardInfo = ALONE  # this rank's place among those that share the width of each expert

    @classmethod
    def of_width(cls, num_experts: int, ranks: ShardInfo) -> ExpertShard:
        """Every rank has some of the width of every expert."""
        return cls(num_experts, tuple(range(num_experts)), ranks)

    @classmethod
    def of_whole_experts(cls, num_experts: int, ranks: ShardInfo, placement: str) -> ExpertShard:
        """Every rank has some of the experts, by the rule in PLACEMENTS that `placement` names.

        Raises UnevenShares if ranks would have none.
        """
        _check_ranks(num_experts, ranks.size)
        return cls(num_experts, tuple(PLACEMENTS[placement](num_experts, ranks)))

    @property
    def has_all(self) -> bool:
        """Whether local ids are the ids of the layer."""
        return self.owned == tuple(range(self.num_experts))

    @property
    def local_ids(self) -> tuple[int, ...]:
        """Of each expert of the layer its local id, or NOT_HERE."""
        places = {expert: place for place, expert in enumerate(self.owned)}
        return tuple(places.get(expert, NOT_HERE) for expert in range(self.num_experts))


def balanced_placement(
    num_experts: int, num_ranks: int, placement: str, num_redundant: int
) -> Placement:
    """Where experts are that move, at first: by the rule that `placement` names, and more copies.

    Raises UnevenShares if ranks would have none, ConfigError if there are more copies than ranks.
    """
    _check_ranks(num_experts, num_ranks)
    most = (num_ranks - 1) * num_experts
    if num_redundant > most:
        raise ConfigError(
            f"--num-redundant-experts {num_redundant}: {num_ranks} ranks (--tensor-parallel-size x "
            f"--data-parallel-size) all have the {num_experts} experts of a layer with {most}. "
            "Lower it: on each rank one copy of an expert is enough."
        )
    rule = PLACEMENTS[placement]
    base = [rule(num_experts, ShardInfo(rank, num_ranks)) for rank in range(num_ranks)]
    return Placement.initial(num_experts, base, num_redundant)


def _check_ranks(num_experts: int, num_ranks: int) -> None:
    """Raises UnevenShares."""
    if num_experts < num_ranks:
        raise UnevenShares(
            f"--enable-expert-parallel with {num_ranks} ranks (--tensor-parallel-size x "
            f"--data-parallel-size): the layers of this model have {num_experts} experts, so "
            "that ranks would have none. Without --enable-expert-parallel the ranks of a copy "
            "share every expert by its width."
        )


def _linear(num_experts: int, ranks: ShardInfo) -> range:
    """As many for each rank, one after the other; the first ranks have those left over."""
    each, over = divmod(num_experts, ranks.size)
    first = ranks.rank * each + min(ranks.rank, over)
    return range(first, first + each + (ranks.rank < over))


def _round_robin(num_experts: int, ranks: ShardInfo) -> range:
    """Dealt out one by one."""
    return range(ranks.rank, num_experts, ranks.size)


PLACEMENTS: Final[Mapping[str, Callable[[int, ShardInfo], range]]] = {
    "linear": _linear,
    "round_robin": _round_robin,
}
