"""GroupRule: how the layers of a KV group use the blocks of a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from vllm.core.kv_cache.block_pool import BlockPool
from vllm.core.request import Request
from vllm.messages.cache import BlockNeeds


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class GroupRule(ABC):
    """What a query needs of a request's blocks in one group, and what may be dropped.

    The block table of a request has `reach` entries; those before `first_needed` may be dropped.
    """

    # Whether entry i of a block table holds the tokens of block i of the request. Then the table
    # grows as the request does, and full blocks are found again by the hashes of their tokens.
    follows_tokens: ClassVar[bool] = True

    def __init__(self, index: int, needs: BlockNeeds) -> None:
        self.index = index
        self.block_size = needs.block_size

    def reach(self, request: Request, upto: int) -> int:
        """Entries that the block table must have before positions below `upto` are computed."""
        return -(-upto // self.block_size)

    @abstractmethod
    def first_needed(self, position: int) -> int:
        """Index of the first block that a query at `position` reads."""

    @abstractmethod
    def most_held(self, reach: int, start: int, step_tokens: int) -> int:
        """Most blocks held at once until the table has `reach` entries.

        The request begins at position `start` and goes on in steps of `step_tokens` tokens.
        """

    @abstractmethod
    def longest_match(self, pool: BlockPool, hashes: Sequence[bytes], limit: int) -> int:
        """Most lead blocks, up to `limit`, after which a sequence can go on from cached ones.

        Asked of rules that follow tokens only.
        """


class FullRule(GroupRule):
    """Every block stays needed: full attention and MLA."""

    def first_needed(self, position: int) -> int:
        return 0

    def most_held(self, reach: int, start: int, step_tokens: int) -> int:
        return reach

    def longest_match(self, pool: BlockPool, hashes: Sequence[bytes], limit: int) -> int:
        for i in range(limit):
            if pool.lookup(hashes[i], self.index) is None:
                return i
        return limit


class SlidingRule(GroupRule):
    """Only the last `window` tokens are read; a match needs just the blocks that hold those."""

    def __init__(self, index: int, needs: BlockNeeds) -> None:
        super().__init__(index, needs)
        assert needs.window is not None, needs
        self.window = needs.window

    def first_needed(self, position: int) -> int:
        return max(0, position - self.window + 1) // self.block_size

    def most_held(self, reach: int, start: int, step_tokens: int) -> int:
        # The window and a step, not aligned to blocks at either end.
        bound = ceil_div(self.window + step_tokens, self.block_size) + 1
        return min(reach - self.first_needed(start), bound)

    def longest_match(self, pool: BlockPool, hashes: Sequence[bytes], limit: int) -> int:
        """Scan back for the last run of cached blocks that covers the window before its end."""
        end = limit
        i = limit
        while end > 0:
            if i == self.first_needed(end * self.block_size):
                return end
            i -= 1
            if pool.lookup(hashes[i], self.index) is None:
                end = i
        return 0


def rule_of(needs: BlockNeeds, index: int) -> GroupRule:
    assert not needs.max_encoder_tokens, "no block rule for cross attention: it needs encoder runs"
    return FullRule(index, needs) if needs.window is None else SlidingRule(index, needs)
