"""How tokens reach experts that other copies of the model have, and what these make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from vllm.device.agreement import AgreedTokens
from vllm.device.collectives import Collectives

# (tokens [T, H], weights [T, k], experts [T, k]) -> [T, H], what this rank's experts add.
OwnExperts = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        longest = max(num_rows, -(-self._tokens.count // self._ranks_per_copy))
        x = self._ranks.gather_rows(_lengthened(x, longest))
        weights = self._ranks.gather_rows(_lengthened(weights, longest))
        ids = self._ranks.gather_rows(_lengthened(ids.int(), longest, self._no_expert))
        sums = self._ranks.scatter_sum(compute(x, weights, ids))
        return sums.narrow(0, 0, num_rows)


def _lengthened(x: Tensor, num_rows: int, value: int = 0) -> Tensor:
    """With rows of `value` behind its own."""
    missing = num_rows - len(x)
    if not missing:
        return x
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing), value=value)
