"""The pass over running requests."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.config.scheduler import SchedulerConfig
from vllm.core.kv_cache.manager import BlockDelta
from vllm.core.lifecycle import Lifecycle
from vllm.core.request import Request, Status
from vllm.core.steady import SteadyPlan
from vllm.core.step import RowLimit, Step


class RunningRows:
    """A pass: rows of running requests, and blocks for them, from requests after them if need be.

    Requests that only decode are planned together (`SteadyRows`) where that has the same result as
    planning all requests one by one in policy order.
    """

    def __init__(
        self, config: SchedulerConfig, lifecycle: Lifecycle, limits: Sequence[RowLimit]
    ) -> None:
        self._threshold = config.long_prefill_token_threshold
        self._lifecycle = lifecycle
        self._limits = limits
        self._kv = lifecycle.kv
        self._steady = lifecycle.steady

    def plan(self, step: Step) -> None:
        running, steady = self._lifecycle.running, self._steady
        if len(running) < steady.least_rows // 2:
            steady.leave_all()
        rows = steady.next_rows(step.decodes_left)
        others = self._others()
        if self._has_room(rows, others, step):
            step.begin_with(rows)
            self._plan_steady(step)
            self._plan_each(others, step)
        else:
            # One by one, in policy order: who is served, and who is preempted for whom, matters.
            steady.leave_all()
            self._plan_each(running, step)

    def _others(self) -> list[Request]:
        """Running requests that are not steady, in order."""
        running, steady = self._lifecycle.running, self._steady
        if len(steady) == len(running):
            return []
        if not len(steady):
            return running.copy()
        return steady.others(running)

    def _has_room(self, rows: SteadyPlan, others: list[Request], step: Step) -> bool:
        """Whether steady rows can be planned first, with the result that order would have."""
        tokens_left, num_begun = step.tokens_left - len(rows.slots), len(rows.begins_block)
        blocks_left = self._kv.pool.num_free - self._kv.blocks_per_new_block * num_begun
        if tokens_left < 0 or blocks_left < 0:
            return False
        if not others or others[0] is self._lifecycle.running[len(self._steady)]:
            return True  # the others come after them, and are preempted before them
        for request in others:
            count = request.num_schedulable()
            if self._threshold and count > 1:
                count = min(count, self._threshold)
            tokens_left -= count
            blocks_left -= self._kv.missing(request, request.num_planned + count)
        return tokens_left >= 0 and blocks_left >= 0

    def _plan_steady(self, step: Step) -> None:
        """Blocks for the rows that the step begins with."""
        rows = step.steady
        for slot in rows.slots[rows.begins_block].tolist():
            step.add_blocks(slot, self._kv.reserve_next(self._steady.holder(slot)))
        self._steady.submit(rows)

    def _plan_each(self, requests: list[Request], step: Step) -> None:
        """Rows of these requests, in order. If they are all, a shortage takes from their end."""
        index = 0
        while index < len(requests) and step.tokens_left > 0:
            request = requests[index]
            index += 1
            if request.status is not Status.RUNNING:
                continue  # preempted for one before it
            behind = request.num_schedulable()
            count = behind if behind <= 1 else self._count(request, behind, step)
            if count == 0 or (step.decodes_left <= 0 and request.is_decoding):
                continue
            deltas = self._reserve(request, request.num_planned + count)
            if deltas is None:
                step.is_short_of_blocks = True
                continue
            if deltas:
                step.add_blocks(request.slot, deltas)
            if behind > 1:
                for limit in self._limits:
                    limit.take(request, behind, count)
                self._kv.announce(request, request.num_planned + count)
            step.add_row(request, count)

    def _count(self, request: Request, behind: int, step: Step) -> int:
        count = min(behind, step.tokens_left)
        for limit in self._limits:
            count = min(count, limit.limit(request, behind, step) or 0)
        return count

    def _reserve(self, request: Request, upto: int) -> list[BlockDelta] | None:
        """Blocks for a running request, taken from requests after it in order if need be."""
        while (deltas := self._kv.reserve(request, upto)) is None:
            if self._lifecycle.draining:
                return None  # blocks are on their way: taking more requests out would be too much
            # No request after this one has a row in the step yet.
            if self._lifecycle.preempt_last() is request:
                return None
        return deltas
