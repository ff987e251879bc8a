"""KVCacheManager: which blocks a request holds, in every KV group, and what prefix it can reuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from vllm.core.kv_cache.block_pool import DUMMY_BLOCK, BlockId, BlockPool
from vllm.core.kv_cache.journal import CacheJournal
from vllm.core.kv_cache.prefix import extend_hashes
from vllm.core.kv_cache.rules import FullRule, GroupRule, SlidingRule, rule_of
from vllm.core.request import Request
from vllm.messages.cache import BlockNeeds, KVCacheLayout
from vllm.messages.engine import CacheNews

# Without groups there are no blocks. Steady requests are still looked at once in so many tokens.
_NO_CACHE_BLOCK_SIZE: Final = 128


class PrefixMatch(NamedTuple):
    """A reusable prefix: its length and, per KV group, the blocks that hold it (0: not needed)."""

    num_tokens: int
    blocks: list[list[BlockId]]


class BlockDelta(NamedTuple):
    """A change of one entry of a request's block table."""

    group: int
    column: int
    block: BlockId


class KVCacheManager:
    """Owner of the pool and of the block lists on requests.

    A request calls, per step, `match` (while it holds nothing), `reserve` and `announce` when a row
    is planned, `commit` when it is done, and at its end `release`, before it `retract` if it failed
    in the model.
    """

    def __init__(
        self,
        layout: KVCacheLayout,
        enable_prefix_caching: bool,
        step_tokens: int,
        make_rule: Callable[[BlockNeeds, int], GroupRule] = rule_of,
        gives_news: bool = False,
    ) -> None:
        """`step_tokens`: positions of one request that may be planned and not yet committed.

        `make_rule` gives the rule of a group from its needs and its number. `gives_news`: changes
        of the prefix cache are noted, and `take_news` is called now and then.
        """
        sizes = {group.needs.block_size for group in layout.groups}
        assert len(sizes) <= 1, f"KV groups with blocks of different sizes: {layout}"
        self.block_size = sizes.pop() if sizes else _NO_CACHE_BLOCK_SIZE
        self.step_tokens = step_tokens
        self.rules = [make_rule(group.needs, i) for i, group in enumerate(layout.groups)]
        self._following = [rule for rule in self.rules if rule.follows_tokens]
        self._sliding = [rule for rule in self.rules if isinstance(rule, SlidingRule)]
        self.enable_prefix_caching = enable_prefix_caching and bool(self._following)
        has_journal = gives_news and self.enable_prefix_caching
        self._journal = _journal_of(self._following) if has_journal else None
        self.pool = BlockPool(layout.num_blocks, len(layout.groups), self._journal)
        # Found by `match`, but filled only by the step that is being planned.
        self._underway: set[BlockId] = set()

    @property
    def blocks_per_new_block(self) -> int:
        """Blocks that `reserve` takes, over all groups, for the first token of a block."""
        return len(self._following)

    def take_news(self) -> CacheNews | None:
        """How the prefix cache has changed since the last call; None: not at all, or not noted."""
        return None if self._journal is None else self._journal.take()

    def begin_step(self) -> None:
        """A step is planned: all before it come first, and fill what they were to fill."""
        self._underway.clear()

    def match(self, request: Request, most_blocks: int | None = None) -> PrefixMatch:
        """The longest prefix this request can start from, up to `most_blocks`. Changes no block.

        At least one token is left to compute, since its hidden state gives the next token. A
        request that wants prompt log-probabilities needs every hidden state and reuses nothing.
        """
        nothing = PrefixMatch(0, [[] for _ in self.rules])
        if not self.enable_prefix_caching or request.params.prompt_logprobs is not None:
            return nothing
        extend_hashes(request, self.block_size)
        hashes = request.block_hashes
        limit = min(len(hashes), (request.num_tokens - 1) // self.block_size)
        length = limit = limit if most_blocks is None else min(limit, most_blocks)
        # Each rule may shorten what the others found; a shorter length is a new question for them.
        while length > 0:
            for rule in self._following:
                length = rule.longest_match(self.pool, hashes, length)
            if length == limit:
                break
            limit = length
        if length == 0:
            return nothing
        match = PrefixMatch(length * self.block_size, nothing.blocks)
        for rule in self._following:
            match.blocks[rule.index] = self._cached(rule, hashes, length)
        return match

    def num_ready(self, match: PrefixMatch) -> int:
        """How many lead blocks of a match do not wait for the step that is being planned."""
        num_blocks = match.num_tokens // self.block_size
        if not self._underway:
            return num_blocks
        return min(
            next((i for i, block in enumerate(blocks) if block in self._underway), num_blocks)
            for blocks in match.blocks
        )

    def fits(self, request: Request, upto: int, match: PrefixMatch) -> bool:
        """Whether a request that holds nothing could go on to `upto` with what is free now."""
        wanted = 0
        for rule, matched in zip(self.rules, match.blocks, strict=True):
            used = [b for b in matched if b != DUMMY_BLOCK]
            reach = rule.reach(request, upto)
            wanted += rule.most_held(reach, match.num_tokens, self.step_tokens) - len(used)
            # Matched blocks that are free leave the free list as well.
            wanted += sum(self.pool.is_free(b) for b in used)
        return wanted <= self.pool.num_free

    def start(self, request: Request, match: PrefixMatch) -> list[BlockDelta]:
        """Let a request that holds nothing begin from `match`."""
        request.num_computed = match.num_tokens
        request.num_published = match.num_tokens // self.block_size
        request.blocks = [list(blocks) for blocks in match.blocks]
        request.num_released = [rule.first_needed(match.num_tokens) for rule in self.rules]
        deltas = []
        for rule, blocks in zip(self.rules, request.blocks, strict=True):
            self.pool.share(blocks)
            deltas += [
                BlockDelta(rule.index, i, b) for i, b in enumerate(blocks) if b != DUMMY_BLOCK
            ]
        return deltas

    def missing(self, request: Request, upto: int) -> int:
        """How many blocks `reserve` would take."""
        missing = 0
        tables = request.blocks
        for rule in self.rules:  # called for each row of a step, of which zip() would take half
            count = rule.reach(request, upto) - len(tables[rule.index])
            if count > 0:
                missing += count
        return missing

    def reserve(self, request: Request, upto: int) -> list[BlockDelta] | None:
        """Blocks for the positions below `upto`: the new ones, or None (none taken) if too few."""
        missing = self.missing(request, upto)
        if missing == 0:
            return []
        if missing > self.pool.num_free:
            return None
        deltas = []
        for rule, blocks in zip(self.rules, request.blocks, strict=True):
            count = rule.reach(request, upto) - len(blocks)
            if count > 0:
                new = self.pool.allocate(count)
                deltas += [
                    BlockDelta(rule.index, i, b) for i, b in enumerate(new, start=len(blocks))
                ]
                blocks += new
        return deltas

    def reserve_next(self, request: Request) -> list[BlockDelta]:
        """As `reserve` for the first position of a block. There must be room.

        For rows that decode: in `reserve` most of the time would go into finding out that.
        """
        deltas = []
        for rule in self._following:
            blocks = request.blocks[rule.index]
            (block,) = self.pool.allocate(1)
            deltas.append(BlockDelta(rule.index, len(blocks), block))
            blocks.append(block)
        return deltas

    def commit_residues(self) -> np.ndarray:
        """[block_size] bool: `commit` does something only where this is set at num_computed modulo
        the block size, if `num_computed` grows by ones."""
        due = np.zeros(self.block_size, np.bool_)
        due[0] = self.enable_prefix_caching
        for rule in self._sliding:
            due[(rule.window - 1) % self.block_size] = True
        return due

    def announce(self, request: Request, upto: int) -> None:
        """After rows up to position `upto` are planned: publish the blocks that they will fill.

        Steps run in order, so whatever a later one reads is there by then.
        """
        if not self.enable_prefix_caching:
            return
        first = request.num_published
        self._publish(request, min(upto, request.num_tokens) // self.block_size)
        for rule in self._following:
            self._underway.update(request.blocks[rule.index][first : request.num_published])
        self._underway.discard(DUMMY_BLOCK)

    def commit(self, request: Request) -> None:
        """After `num_computed` has grown: publish filled blocks, drop those no query will read."""
        self._publish(request, request.num_computed // self.block_size)
        # At every commit, not just when a block fills: `most_held` counts on it.
        self._release_passed(request)

    def _publish(self, request: Request, num_full: int) -> None:
        if num_full <= request.num_published:
            return
        if self.enable_prefix_caching:
            extend_hashes(request, self.block_size)
            for rule in self._following:
                blocks = request.blocks[rule.index]
                first = max(request.num_published, request.num_released[rule.index])
                for i in range(first, num_full):
                    self.pool.publish(blocks[i], request.block_hashes[i], rule.index)
        request.num_published = num_full

    def retract(self, request: Request) -> None:
        """No request is to start from what this one published: keys and values may be wrong."""
        for rule in self._following:
            self.pool.forget(request.block_hashes[: request.num_published], rule.index)

    def release(self, request: Request) -> None:
        """Give back all blocks, the last to be reused first: prefixes are what others share."""
        for blocks in request.blocks:
            self.pool.release(reversed(blocks))
        request.blocks = []
        request.num_released = []

    def _release_passed(self, request: Request) -> None:
        # Steps in flight start at num_computed or later, so they do not read what lies before the
        # window of that position either.
        for rule in self._sliding:
            blocks = request.blocks[rule.index]
            first = rule.first_needed(request.num_computed)
            passed = range(request.num_released[rule.index], min(first, len(blocks)))
            if passed:
                self.pool.release([blocks[i] for i in passed])
                for i in passed:
                    blocks[i] = DUMMY_BLOCK
                request.num_released[rule.index] = passed.stop

    def _cached(self, rule: GroupRule, hashes: Sequence[bytes], length: int) -> list[BlockId]:
        first = rule.first_needed(length * self.block_size)
        found = [self.pool.lookup(h, rule.index) for h in hashes[first:length]]
        assert None not in found
        return [DUMMY_BLOCK] * first + [b for b in found if b is not None]


def _journal_of(following: Sequence[GroupRule]) -> CacheJournal:
    """A journal of one group, whose prefixes stand for those of all.

    A group that looks back at everything has no prefix without its beginning.
    """
    full = [rule for rule in following if isinstance(rule, FullRule)]
    return CacheJournal((full or following)[0].index)
