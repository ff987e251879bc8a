"""How tokens reach experts that other copies of the model have, and what these make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vllm.device.agreement import AgreedTokens
from vllm.device.collectives import Collectives
from vllm.expert_variables import BY_SHAPE, EXCHANGE, GATHER
from vllm.layers.expert_shard import NOT_HERE, ExpertShard
from vllm.logger import init_logger

logger = init_logger(__name__)

# Rows that a rank is spared, from which on an exchange is worth what it costs besides.
_SPARED_ROWS: Final = 256

# (tokens [T, H], weights [T, k], experts [T, k]) -> [T, H], what this rank's experts add.
OwnExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
# (what this rank's experts add, x [T, H], weights and ids [T, k]) -> [T, H], summed over all ranks.
Dispatch = Callable[[OwnExperts, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ExpertRanks:
    """The ranks of all copies that have the experts of a layer together."""

    ranks: Collectives
    tokens: AgreedTokens


class TokenSplit:
    """Tokens that all ranks of a copy have, as rows of which each rank has some.

    So that no token passes the router, or is sent, twice.
    """

    def __init__(self, tp: Collectives) -> None:
        self._tp = tp

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows.   [T, ...] -> [ceil(T / ranks), ...], zeros behind the last token"""
        if self._tp.size == 1:
            return x
        rows = -(-len(x) // self._tp.size)
        return _lengthened(x, rows * self._tp.size).narrow(0, self._tp.rank * rows, rows)

    def own_sum(self, x: Tensor) -> Tensor:
        """This rank's rows of the sum of every rank's `x`; shapes as of `own`."""
        if self._tp.size == 1:
            return x
        rows = -(-len(x) // self._tp.size)
        return self._tp.scatter_sum(_lengthened(x, rows * self._tp.size))

    def joined(self, own: Tensor, num_tokens: int) -> Tensor:
        """All rows again.   [ceil(T / ranks), ...] -> [T, ...]"""
        if self._tp.size == 1:
            return own
        return self._tp.gather_rows(own).narrow(0, 0, num_tokens)


class GatherTokens:
    """Every rank sees all tokens, adds what its own experts make of them, and gets its sums.

    Shapes depend on the number of tokens alone, as graphs need it.
    """

    def __init__(self, experts: ExpertRanks, ranks_per_copy: int, no_expert: int) -> None:
        """`no_expert`: the choice of rows that are no tokens."""
        self._no_expert = no_expert
        self._ranks = experts.ranks
        self._tokens = experts.tokens
        self._ranks_per_copy = ranks_per_copy

    def __call__(self, compute: OwnExperts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] -> [T, H], summed over the experts of all ranks."""
        num_rows = len(x)
        longest = _most_rows(self._tokens, self._ranks_per_copy, num_rows)
        x = self._ranks.gather_rows(_lengthened(x, longest))
        weights = self._ranks.gather_rows(_lengthened(weights, longest))
        ids = self._ranks.gather_rows(_lengthened(ids.int(), longest, self._no_expert))
        sums = self._ranks.scatter_sum(compute(x, weights, ids))
        return sums.narrow(0, 0, num_rows)


class ExchangeTokens:
    """A token goes once to every rank that has experts of its choice, and to no other.

    What a rank's experts make of a token comes back as one row; rows are summed in order of rank,
    in float32, and rounded once, as GatherTokens has it: what a token gets depends on it alone.
    Sizes depend on values, which are read on the host.
    """

    def __init__(self, experts: ExpertRanks, shard: ExpertShard) -> None:
        """`shard`: the experts of this rank."""
        self._ranks = experts.ranks
        self._shard = shard
        self._owners: Tensor | None = None  # [experts + 1] int64: the rank that has each, and none

    def __call__(self, compute: OwnExperts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] -> [T, H], summed over the experts of all ranks."""
        size = self._ranks.size
        owners = self._where().index_select(0, ids.flatten().long()).view_as(ids)  # [T, k]
        wanted = x.new_zeros((len(x), size + 1), dtype=torch.bool).scatter_(1, owners, True)
        # Rank after rank, and token after token of each.
        _, tokens = wanted[:, :size].t().nonzero().unbind(1)  # [R]
        sent = wanted[:, :size].sum(0).tolist()
        received = self._ranks.show(np.array(sent, np.int32))[:, self._ranks.rank].tolist()
        choices = torch.cat((weights.float().view(torch.int32), ids.int()), dim=1)
        rows = self._ranks.exchange(x.index_select(0, tokens), sent, received)
        choices = self._ranks.exchange(choices.index_select(0, tokens), sent, received)
        theirs, chosen = choices.chunk(2, dim=1)
        if len(rows):
            given = theirs.contiguous().view(torch.float32).to(weights.dtype)
            rows = compute(rows, given, chosen.contiguous())
        made = self._ranks.exchange(rows, received, sent)
        return _summed(made, tokens, sent, len(x))

    def _where(self) -> Tensor:
        """All ranks show which experts they have, the first time; they must all be there."""
        if self._owners is None:
            local_ids = self._shard.local_ids
            has = np.array([local != NOT_HERE for local in local_ids], np.int32)
            shown = torch.from_numpy(self._ranks.show(has))  # [ranks, experts]
            assert bool((shown.sum(0) == 1).all()), "an expert is on one rank"
            nobody = torch.tensor([self._ranks.size])
            self._owners = torch.cat((shown.argmax(0), nobody))
        return self._owners


class DispatchByShape:
    """Either way, as `spares_enough` says; all ranks take the same one."""

    def __init__(
        self, gather: GatherTokens, exchange: ExchangeTokens, experts: ExpertRanks, per_copy: int
    ) -> None:
        """`per_copy`: ranks of a copy."""
        self._gather = gather
        self._exchange = exchange
        self._tokens = experts.tokens
        self._num_ranks = experts.ranks.size
        self._ranks_per_copy = per_copy

    def __call__(self, compute: OwnExperts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] -> [T, H], summed over the experts of all ranks."""
        tokens = self._tokens
        rows = _most_rows(tokens, self._ranks_per_copy, len(x))
        # A decode step is captured. Warm-up, in which nothing is agreed, must need most memory.
        may_exchange = tokens.count > 0 and not tokens.is_decode
        is_spared = may_exchange and spares_enough(rows, self._num_ranks, ids.shape[1])
        return (self._exchange if is_spared else self._gather)(compute, x, weights, ids)


def spares_enough(num_rows: int, num_ranks: int, top_k: int) -> bool:
    """Whether an exchange moves so much less than gathering that it is worth its own cost.

    A rank with T rows gets (N - 1) T rows of the other N - 1 ranks by gathering, and gives as many
    sums back. Of k experts that are chosen evenly a given rank has none with probability
    (1 - 1/N)^k. So by an exchange it gets (N - 1) T (1 - (1 - 1/N)^k) rows, and gives as many back.
    Spared are (N - 1) T (1 - 1/N)^k: of 16 ranks and 8 choices 60 %, of 8 ranks 34 %, of 2 less
    than 1 %. An exchange costs two more meetings of all ranks, a copy of every row that travels in
    order of rank, and the wait for values on the host. So it must spare half of all rows, for the
    copies, and _SPARED_ROWS rows, for the meetings. N = 13 is the least for k = 8, and 4 for k = 2.
    """
    share = (1.0 - 1.0 / num_ranks) ** top_k
    return share >= 0.5 and (num_ranks - 1) * num_rows * share >= _SPARED_ROWS


def make_dispatch(
    way: str, experts: ExpertRanks, ranks_per_copy: int, shard: ExpertShard, static_shapes: bool
) -> Dispatch:
    """The `way` of ALL2ALL_BACKENDS, or BY_SHAPE. `static_shapes`: of the device's launches."""
    gather = GatherTokens(experts, ranks_per_copy, shard.num_experts)
    if static_shapes and way == EXCHANGE:
        logger.warning_once(
            "--all2all-backend: every rank sees all tokens. How many of them need a rank differs "
            "from step to step, and this device runs shapes that are known before."
        )
    if static_shapes or way == GATHER:
        return gather
    exchange = ExchangeTokens(experts, shard)
    if way == EXCHANGE:
        return exchange
    assert way == BY_SHAPE, way
    return DispatchByShape(gather, exchange, experts, ranks_per_copy)


def _most_rows(tokens: AgreedTokens, ranks_per_copy: int, num_rows: int) -> int:
    """Rows of the rank that has most; this one has `num_rows`."""
    return max(num_rows, -(-tokens.count // ranks_per_copy))


def _summed(rows: Tensor, tokens: Tensor, counts: list[int], num_tokens: int) -> Tensor:
    """Sums of the rows of each token.   rows [R, H] of tokens [R] -> [num_tokens, H]

    `counts`: how many rows are of each rank; a token has one of a rank at most.
    """
    total = rows.new_zeros((num_tokens, rows.shape[1]), dtype=torch.float32)
    for some, of in zip(rows.split(counts), tokens.split(counts), strict=True):
        total.index_add_(0, of, some.float())
    return total.to(rows.dtype)


def _lengthened(x: Tensor, num_rows: int, value: int = 0) -> Tensor:
    """With rows of `value` behind its own."""
    missing = num_rows - len(x)
    if not missing:
        return x
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing), value=value)
