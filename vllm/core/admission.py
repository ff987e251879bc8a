"""The pass that admits waiting requests."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.core.kv_cache.manager import PrefixMatch
from vllm.core.lifecycle import Lifecycle
from vllm.core.request import Request
from vllm.core.step import RowLimit, Step


class WaitingRows:
    """A pass: first rows of waiting requests, in order, while budget, slots and blocks last."""

    def __init__(self, lifecycle: Lifecycle, limits: Sequence[RowLimit]) -> None:
        self._lifecycle = lifecycle
        self._limits = limits
        self._kv = lifecycle.kv
        self._stats = lifecycle.stats

    def plan(self, step: Step) -> None:
        lifecycle = self._lifecycle
        if not len(lifecycle.waiting):
            return
        # A preempted request that still drains comes before any that waits.
        if step.is_short_of_blocks or not all(r.is_finished for r in lifecycle.draining):
            return
        waiting, free_slots = lifecycle.waiting, lifecycle.free_slots
        passed_over: list[Request] = []
        num_expecting = 0  # of these, requests that wait for a prefix: no more than could run
        while step.tokens_left > 0 and num_expecting < len(free_slots):
            request = waiting.peek()
            if request is None or len(passed_over) == lifecycle.max_num_seqs:
                break
            match = self._match(request)
            if match is None:
                num_expecting += 1
                passed_over.append(waiting.pop())
                continue
            count = self._count(request, request.num_tokens - match.num_tokens, step)
            if count is None:
                passed_over.append(waiting.pop())
                continue
            if count == 0 or not self._kv.fits(request, request.num_tokens, match):
                break
            waiting.pop()
            self._admit(request, match, count, step)
        for request in passed_over:
            waiting.push(request)

    def _match(self, request: Request) -> PrefixMatch | None:
        """The prefix to start from; None: better wait for what this step computes."""
        match = self._kv.match(request)
        ready = self._kv.num_ready(match) * self._kv.block_size
        if ready == match.num_tokens:
            return match
        if 2 * (match.num_tokens - ready) >= request.num_tokens - ready:
            return None
        return self._kv.match(request, ready // self._kv.block_size)

    def _count(self, request: Request, behind: int, step: Step) -> int | None:
        """Tokens that its first row computes; 0 and None as a RowLimit says."""
        count = min(behind, step.tokens_left)
        for limit in self._limits:
            most = limit.limit(request, behind, step)
            if not most:
                return most
            count = min(count, most)
        return count

    def _admit(self, request: Request, match: PrefixMatch, count: int, step: Step) -> None:
        """Give the request a slot and blocks, and its first row of `count` tokens."""
        kv, behind = self._kv, request.num_tokens - match.num_tokens
        step.admissions.append(self._lifecycle.admit(request))
        step.add_blocks(request.slot, kv.start(request, match))
        if request.num_output_tokens == 0:
            request.num_cached_tokens = match.num_tokens
        if kv.enable_prefix_caching:
            self._stats.prefix_queries += request.num_tokens
            self._stats.prefix_hits += match.num_tokens
        deltas = kv.reserve(request, match.num_tokens + count)
        assert deltas is not None, "fits() promised these blocks"
        step.add_blocks(request.slot, deltas)
        for limit in self._limits:
            limit.take(request, behind, count)
        kv.announce(request, match.num_tokens + count)
        step.add_row(request, count)
