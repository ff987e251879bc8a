"""Mixture of experts: a router chooses experts per token, a method runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vllm.layers.activation import gated_name
from vllm.layers.context import ModelContext
from vllm.layers.dispatch import GATHER, TokenSplit, make_dispatch
from vllm.layers.expert_placement import TURNS, Move, Placement
from vllm.layers.expert_shard import NOT_HERE, ExpertShard
from vllm.layers.methods import ExpertsMethod
from vllm.layers.shapes import Piece, Share
from vllm.layers.weighted import Weighted
from vllm.layers.weights import Destination, Loadable
from vllm.ops.moe import Routing


class Router(Weighted):
    """x [T, H] -> weights [T, k] float32 and expert ids [T, k] of the chosen experts."""

    may_stay_plain = True
    correction: Tensor | None

    def __init__(self, routing: Routing, hidden: int, context: ModelContext) -> None:
        dtype = torch.float32 if routing.wide else context.dtype
        super().__init__(routing.num_experts, hidden, dtype)
        self.routing = routing
        self.register_parameter("correction", None)
        if routing.correction:
            self.declare("correction", (routing.num_experts,), torch.float32)
        self.choose = context.ops.choose_experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.method.apply(self, x.float() if self.routing.wide else x)  # [T, E]
        chosen: tuple[Tensor, Tensor] = self.choose(logits, self.correction, self.routing)
        return chosen


class Experts(Loadable):
    """Gated MLPs, one per expert; a rank has those that its `shard` says, or some width of each.

    Outputs are the rank's share of a sum.
    """

    method: ExpertsMethod  # chosen by the loader, see vllm.layers.schemes
    w13: Tensor
    w2: Tensor
    # What methods that quantize have.
    w13_scales: Tensor
    w2_scales: Tensor

    def __init__(
        self, shard: ExpertShard, hidden: int, intermediate: int, act: str, context: ModelContext
    ) -> None:
        super().__init__()
        self.shard = shard
        self.hidden, self.intermediate, self.dtype = hidden, intermediate, context.dtype
        self.start, self.width = shard.width.span(intermediate, what="columns of an expert")
        self.num_experts = len(shard.owned)
        self.act = gated_name(act)

    def pieces(self) -> Iterator[Piece]:
        """Gate, up and down of every expert of the layer."""
        wide, tall = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        of_wide, of_tall = Share(0, self.start, self.width), Share(1, self.start, self.width)
        for expert, local in enumerate(self.shard.local_ids):
            width, hidden = (0, 0) if local == NOT_HERE else (self.width, self.hidden)
            yield Piece(wide, 0, width, "gate", expert, "w13.", of_wide, local)
            yield Piece(wide, width, width, "up", expert, "w13.", of_wide, local)
            yield Piece(tall, 0, hidden, "", expert, "w2.", of_tall, local)

    def allocate(self, device: torch.device) -> None:
        super().allocate(device)
        self.method.allocate(self, device)

    def destinations(self) -> Iterator[Destination]:
        return self.method.destinations(self)

    def finish(self) -> None:
        self.method.finish(self)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] of experts of the layer -> [T, H]."""
        return self.method.apply(self, x, weights, ids)


class DividedExperts(Experts):
    """Experts of which other ranks have some: their choices add nothing here."""

    local_ids: Tensor  # [experts of the layer + 1] int64, as ExpertShard has them, and NOT_HERE

    @property
    def no_expert(self) -> int:
        """An id that is no expert's; choosing it adds nothing on any rank."""
        return self.shard.num_experts

    def allocate(self, device: torch.device) -> None:
        super().allocate(device)
        ids = torch.tensor((*self.shard.local_ids, NOT_HERE), dtype=torch.int64, device=device)
        self.register_buffer("local_ids", ids, persistent=False)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        local = self.local_ids.index_select(0, ids.flatten()).view_as(ids)
        return self.method.apply(self, x, weights, local)


class BalancedExperts(DividedExperts):
    """Experts that move between ranks, of which busy ones have copies on several ranks.

    Every rank sees all choices, counts them, and finds the copy that a choice goes to by the row
    of its token: rows take turns.
    """

    counts: Tensor  # [experts of the layer + 1] int32: choices, the last of `no_expert`
    one: Tensor  # [1] int32

    def __init__(
        self,
        placement: Placement,
        rank: int,
        hidden: int,
        intermediate: int,
        act: str,
        context: ModelContext,
    ) -> None:
        """This layer owns `placement`."""
        self.placement = placement
        self.rank = rank  # among those that have the experts together
        shard = ExpertShard(placement.num_experts, tuple(placement.held[rank]))
        super().__init__(shard, hidden, intermediate, act, context)

    def allocate(self, device: torch.device) -> None:
        super().allocate(device)
        self.local_ids = torch.from_numpy(self.table()).to(device)
        counts = torch.zeros(self.no_expert + 1, dtype=torch.int32, device=device)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("one", torch.ones_like(counts[:1]), persistent=False)

    def stored(self) -> Iterator[Tensor]:
        """What this rank has of its experts, each [places, ...]."""
        for tensor in self.parameters(recurse=False):
            assert len(tensor) == self.num_experts, (tensor.shape, self.num_experts)
            yield tensor.data

    def note(self, move: Move) -> None:
        """The weights have moved. Whoever moved them writes `table` to the device."""
        self.placement.apply(move)
        self.shard = replace(self.shard, owned=tuple(self.placement.held[self.rank]))

    def table(self) -> np.ndarray:
        """What is to be in `local_ids`: [(experts + 1) * TURNS], of each expert turn by turn."""
        local = np.array(self.shard.local_ids, np.int64)[:, None]
        own = np.where(self.placement.turns() == self.rank, local, NOT_HERE)
        return np.append(own, np.full(TURNS, NOT_HERE))

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        chosen = ids.flatten().long()
        self.counts.scatter_add_(0, chosen, self.one.expand(chosen.shape[0]))
        turns = torch.arange(ids.shape[0], device=ids.device) & (TURNS - 1)
        index = torch.add(turns.unsqueeze(1), ids, alpha=TURNS)  # [T, k]
        local = self.local_ids.index_select(0, index.flatten()).view_as(ids)
        return self.method.apply(self, x, weights, local)


class MoE(nn.Module):
    """x [T, H] -> [T, H] through the chosen experts."""

    def __init__(
        self,
        routing: Routing,
        hidden: int,
        intermediate: int,
        act: str,
        context: ModelContext,
        shared: nn.Module | None = None,
    ) -> None:
        """Every token passes `shared` as well, whose outputs must be partial sums."""
        super().__init__()
        self.router = Router(routing, hidden, context)
        self.experts = _experts(routing.num_experts, hidden, intermediate, act, context)
        self.shared = shared
        self._connect(context)

    def _connect(self, context: ModelContext) -> None:
        """With the ranks that have the other experts."""
        self.complete = context.tp.sum_of

    def forward(self, x: Tensor) -> Tensor:
        return self.complete(self._share, x)

    def _share(self, x: Tensor) -> Tensor:
        """What this rank has of the experts gives; partial sums."""
        weights, ids = self.router(x)
        out: Tensor = self.experts(x, weights, ids)
        if self.shared is not None:
            out = out + self.shared(x)
        return out


class SpreadMoE(MoE):
    """The same, with experts that are spread over the ranks of several copies of the model."""

    experts: DividedExperts

    def _connect(self, context: ModelContext) -> None:
        assert context.experts is not None
        self.split = TokenSplit(context.tp)
        way = context.config.parallel.expert_dispatch
        self.dispatch = make_dispatch(
            GATHER if context.balances_experts else way,  # all choices are counted everywhere
            context.experts,
            context.tp.size,
            self.experts.shard,
            context.capabilities.static_shapes,
        )

    def forward(self, x: Tensor) -> Tensor:
        own = self.split.own(x)
        weights, ids = self.router(own)
        out = self.dispatch(self.experts, own, weights, ids)
        if self.shared is not None:
            out = out + self.split.own_sum(self.shared(x))
        return self.split.joined(out, len(x))


def moe_type(context: ModelContext) -> type[MoE]:
    """What a layer with experts is, on whichever ranks these are."""
    return MoE if context.experts is None else SpreadMoE


def _experts(
    num_experts: int, hidden: int, intermediate: int, act: str, context: ModelContext
) -> Experts:
    if context.balances_experts:
        placement, rank = context.expert_placement(num_experts), context.expert_ranks.rank
        return BalancedExperts(placement, rank, hidden, intermediate, act, context)
    shard = context.expert_shard(num_experts)
    is_whole = shard.has_all and context.experts is None
    kind = Experts if is_whole else DividedExperts
    return kind(shard, hidden, intermediate, act, context)
