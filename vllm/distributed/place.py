"""Where a rank stands among the others, and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm.distributed.groups import SINGLE, Group


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands."""

    rank: int  # among the ranks of one executor
    world_size: int
    local_rank: int  # among the ranks of its machine, those of other copies of the model too
    tp: Group = SINGLE
    pp: Group = SINGLE
    dp: Group = SINGLE  # copies of the model that run every launch together
    rendezvous: str = ""  # a path or host:port at which `everyone` meets; "" where they need not
    memory: str = ""  # a path to memory that the ranks of `tp` share; "" where they share none
    experts_memory: str = ""  # the same, of the ranks of `ep`
    device: int = -1  # what the platform has set aside for it on its machine; -1: nothing
    node: int = 0  # the machine it runs on, among those of the executor
    local_size: int = 1  # ranks on its machine, of all copies
    address: str = ""  # of its machine, as other ranks reach it; "" where gloo may choose

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size, (self.rank, self.world_size)
        assert self.local_rank >= 0, self.local_rank
        assert self.tp.size * self.pp.size == self.world_size, (self.tp, self.pp, self.world_size)

    @property
    def ep(self) -> Group:
        """The ranks of all copies that compute this one's stage."""
        return Group(self.dp.rank * self.tp.size + self.tp.rank, self.dp.size * self.tp.size)

    @property
    def everyone(self) -> Group:
        """All ranks of all copies."""
        size = self.world_size
        return Group(self.dp.rank * size + self.rank, self.dp.size * size)

    @property
    def spreads_experts(self) -> bool:
        """Whether ranks of one copy compute experts for another's tokens."""
        return self.dp.size > 1

    @property
    def shares_memory(self) -> bool:
        """Whether ranks that share layers with this one, if there are any, share memory too."""
        has_memory = self.tp.size == 1 or bool(self.memory)
        return has_memory and (self.dp.size == 1 or bool(self.experts_memory))

    @property
    def is_driver(self) -> bool:
        """Whether this rank answers steps with values: one rank of the last stage has them all."""
        return self.tp.rank == 0 and self.pp.rank == self.pp.size - 1


ALONE = Place(rank=0, world_size=1, local_rank=0)


@dataclass(frozen=True, slots=True)
class SpreadExperts:
    """Where copies of a model meet that share its experts."""

    copies: Group = SINGLE
    rendezvous: str = ""
    memory: Sequence[str] = ()  # by stage; empty: they share none
    address: str = ""  # of this machine, as ranks of other copies reach it

    def memory_of(self, stage: int) -> str:
        return self.memory[stage] if self.memory else ""


NOT_SPREAD = SpreadExperts()  # every copy has all experts


def make_places(
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    num_nodes: int = 1,
    copy: int = 0,
    num_copies: int = 1,
    experts: SpreadExperts = NOT_SPREAD,
) -> list[Place]:
    """The places of all ranks of an executor, by rank: stage after stage, and node after node.

    `num_nodes` divides the number of ranks. `copy`: which of the `num_copies` of the model on every
    machine these ranks compute. `experts`: where copies meet that share them.
    """
    world_size = tensor_parallel_size * pipeline_parallel_size
    ranks_per_node, rest = divmod(world_size, num_nodes)
    assert not rest, (world_size, num_nodes)
    places = []
    for rank in range(world_size):
        stage, share = divmod(rank, tensor_parallel_size)
        node, local_rank = divmod(rank, ranks_per_node)
        places.append(
            Place(
                rank=rank,
                world_size=world_size,
                local_rank=copy * ranks_per_node + local_rank,
                tp=Group(share, tensor_parallel_size),
                pp=Group(stage, pipeline_parallel_size),
                node=node,
                local_size=num_copies * ranks_per_node,
                dp=experts.copies,
                rendezvous=experts.rendezvous,
                experts_memory=experts.memory_of(stage),
                address=experts.address,
            )
        )
    return places
