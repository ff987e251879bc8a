"""Scheduler: decides, step by step, which tokens of which requests are computed.

There are no phases: a request is behind by the tokens it knows and has not computed, be it a whole
prompt or one drawn token, and a step computes some of them for as many requests as its token budget
and the KV cache allow. It needs lengths only, so steps can be planned while others are in flight.
"""

from __future__ import annotations

import bisect
import copy
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from vllm.core.kv_cache.manager import BlockDelta, KVCacheManager, PrefixMatch
from vllm.core.plan_builder import PlanBuilder, Row
from vllm.core.policy import POLICIES, WaitingQueue
from vllm.core.request import Request, Status
from vllm.core.steady import NO_STEADY_ROWS, SteadyPlan, SteadyRows
from vllm.messages.cache import KVCacheLayout
from vllm.messages.engine import EngineRequest, EngineStats, FinishReason, RequestUpdate
from vllm.messages.step import (
    NO_ROWS,
    NO_TOKEN,
    Admission,
    LogprobArrays,
    PromptLogprobs,
    StepPlan,
    StepResult,
)
from vllm.structured_output.compiler import (
    NO_GRAMMARS,
    GrammarCompiler,
    NoGrammars,
    PendingGrammar,
)
from vllm.structured_output.grammar import BackendError, GrammarError

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

WRONG_TOKEN_ERROR: Final = "a token was drawn that the grammar does not allow"
NO_TOKEN_ERROR: Final = (
    "no token could be drawn: the model's logits are NaN, or what the request asks for forbids "
    "every token"
)


class InflightStep(NamedTuple):
    """A planned step, until it commits. Its rows are `steady`'s and after them `rows`."""

    step: int
    steady: SteadyPlan
    rows: list[Row]
    submitted_s: float


class Committed(NamedTuple):
    """What a step did: to requests by name, and to those that got a token and nothing else."""

    updates: list[RequestUpdate]
    slots: np.ndarray = NO_ROWS  # [R] int32
    token_ids: np.ndarray = NO_ROWS  # [R] int32


class Scheduler:
    """Owner of all requests and of the KV cache's bookkeeping."""

    def __init__(
        self,
        config: VllmConfig,
        layout: KVCacheLayout,
        grammars: GrammarCompiler | NoGrammars = NO_GRAMMARS,
    ) -> None:
        self.config = config.scheduler
        self.max_model_len = config.model.max_model_len
        self.eos_token_ids = config.model.eos_token_ids
        self.kv = KVCacheManager(
            layout,
            config.cache.enable_prefix_caching,
            step_tokens=self.config.max_num_batched_tokens * self.config.pipeline_depth,
        )
        self.grammars = grammars
        self.compiling: dict[Request, PendingGrammar] = {}
        self.order_of = POLICIES[self.config.policy]
        self.requests: dict[str, Request] = {}
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # in policy order
        # No longer running, but held by steps in flight: preempted or finished ones.
        self.draining: set[Request] = set()
        # Running requests that only decode; of the others alone the fields are up to date.
        self.steady = SteadyRows(self.config.max_num_seqs + 1, self.kv)
        self.inflight: deque[InflightStep] = deque()
        self.free_slots = list(range(self.config.max_num_seqs, 0, -1))  # 0 is the dummy row's
        self.released_slots: list[int] = []  # to tell the ranks in the next plan
        self.updates: list[RequestUpdate] = []  # not of a step: aborts
        self.num_arrivals = 0
        self.num_steps = 0
        self.stats = EngineStats(num_blocks=layout.num_blocks)

    # -- requests come and go ---------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        return bool(self.requests)

    def add(self, source: EngineRequest) -> None:
        """Queue a request that the Processor has checked."""
        assert source.request_id not in self.requests, f"request id {source.request_id} is in use"
        self.num_arrivals += 1
        order = self.order_of(source, self.num_arrivals)
        request = Request(source, order, self.eos_token_ids, self.max_model_len)
        assert 0 < request.num_tokens < self.max_model_len, (request.id, request.num_tokens)
        self.requests[request.id] = request
        form = request.params.structured_outputs
        if form is None:
            self.waiting.push(request)
            return
        request.status = Status.COMPILING
        self.compiling[request] = self.grammars.submit(form)

    def abort(self, request_id: str) -> None:
        """End a request wherever it is; unknown ids have ended already."""
        request = self.requests.get(request_id)
        if request is not None and not request.is_finished:
            self._finish(request, FinishReason.ABORT)
            self.updates.append(RequestUpdate(request_id, [], finish_reason=FinishReason.ABORT))

    def take_compiled(self) -> None:
        """Queue requests whose grammar is there, and end those that will have none."""
        for request, pending in list(self.compiling.items()):
            try:
                request.grammar = pending.poll()
            except (GrammarError, BackendError) as error:
                self.updates.append(self._without_form(request, error))
                continue
            if request.grammar is not None:
                del self.compiling[request]
                request.status = Status.WAITING
                self.waiting.push(request)

    def wait_compiled(self, timeout_s: float) -> None:
        """Until a grammar is there, for when nothing else is to be done."""
        self.grammars.wait(self.compiling.values(), timeout_s)

    def take_updates(self) -> list[RequestUpdate]:
        updates, self.updates = self.updates, []
        return updates

    # -- planning ---------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None when nothing can run before a step in flight commits."""
        if self.compiling:
            self.take_compiled()
        if len(self.running) < self.steady.least_rows // 2:
            self.steady.leave_all()
        self.kv.begin_step()
        steady = self.steady.next_rows()
        others = self._others()
        if self._has_room(steady, others):
            builder = PlanBuilder(self.config.max_num_batched_tokens, steady)
            self._plan_steady(builder)
            enough = self._plan_running(others, builder)
        else:
            # One by one, in policy order: who is served, and who is preempted for whom, matters.
            self.steady.leave_all()
            builder = PlanBuilder(self.config.max_num_batched_tokens, NO_STEADY_ROWS)
            enough = self._plan_running(self.running, builder)
        # A preempted request that still drains comes before any that waits.
        if enough and all(request.is_finished for request in self.draining):
            self._plan_waiting(builder)
        if not builder.rows and not len(builder.steady.slots):
            return None
        self.num_steps += 1
        plan = builder.build(self.num_steps, self.released_slots, self.grammars.mask_words)
        self.released_slots = []
        self.inflight.append(
            InflightStep(self.num_steps, builder.steady, builder.rows, time.monotonic())
        )
        return plan

    def _others(self) -> list[Request]:
        """Running requests that are not steady, in order."""
        if len(self.steady) == len(self.running):
            return []
        if not len(self.steady):
            return self.running.copy()
        return [request for request in self.running if request not in self.steady]

    def _has_room(self, steady: SteadyPlan, others: list[Request]) -> bool:
        """Whether steady rows can be planned first, with the result that order would have."""
        budget = self.config.max_num_batched_tokens - len(steady.slots)
        blocks = self.kv.pool.num_free - len(steady.begins_block) * len(self.kv.rules)
        if budget < 0 or blocks < 0:
            return False
        if not others or others[0] is self.running[len(self.steady)]:
            return True  # the others come after them, and are preempted before them
        threshold = self.config.long_prefill_token_threshold
        for request in others:
            count = request.num_schedulable()
            if threshold and count > 1:
                count = min(count, threshold)
            budget -= count
            blocks -= self.kv.missing(request, request.num_planned + count)
        return budget >= 0 and blocks >= 0

    def _plan_steady(self, builder: PlanBuilder) -> None:
        """Blocks for the rows that the builder starts with."""
        slots, starts, begins_block = builder.steady
        for row in begins_block.tolist():
            slot = int(slots[row])
            deltas = self.kv.reserve(self.steady.holder(slot), int(starts[row]) + 1)
            assert deltas is not None, "there was room"
            builder.add_blocks(slot, deltas)
        self.steady.submit(builder.steady)

    def _plan_running(self, requests: list[Request], builder: PlanBuilder) -> bool:
        """Rows for running requests, in order; False after a shortage of blocks.

        `requests` may be the list of all: a shortage takes from its end.
        """
        enough = True
        index = 0
        while index < len(requests) and builder.budget > 0:
            request = requests[index]
            index += 1
            if request.status is not Status.RUNNING:
                continue  # preempted for one before it
            count = self._chunk(request, builder)
            if count == 0:
                continue
            deltas = self._reserve(request, request.num_planned + count)
            if deltas is None:
                enough = False
                continue
            self._count_partial(request, count, builder)
            if deltas:
                builder.add_blocks(request.slot, deltas)
            if count > 1:
                self.kv.announce(request, request.num_planned + count)
            builder.add_row(request, count)
        return enough

    def _reserve(self, request: Request, upto: int) -> list[BlockDelta] | None:
        """Blocks for a running request, taken from requests after it in order if need be."""
        while (deltas := self.kv.reserve(request, upto)) is None:
            if self.draining:
                return None  # blocks are on their way: taking more requests out would be too much
            victim = self.running.pop()  # none after `request` has a row in the step being planned
            self._preempt(victim)
            if victim is request:
                return None
        return deltas

    def _plan_waiting(self, builder: PlanBuilder) -> None:
        """Admit waiting requests in order while budget, slots and blocks last."""
        passed_over: list[Request] = []
        while builder.budget > 0 and self.free_slots:
            request = self.waiting.peek()
            if request is None:
                break
            match = self._match(request)
            if match is None:
                passed_over.append(self.waiting.pop())
                if len(passed_over) >= len(self.free_slots):
                    break
                continue
            rest = request.num_tokens - match.num_tokens
            count = self._limit(rest, builder)
            if count == 0 or (
                count < rest and builder.num_partial >= self.config.max_num_partial_prefills
            ):
                break
            if self._is_long(rest) and (
                builder.num_long_partial >= self.config.max_long_partial_prefills
            ):
                # Shorter prompts may overtake it; it keeps its place for the next step.
                passed_over.append(self.waiting.pop())
                continue
            if not self.kv.fits(request, request.num_tokens, match):
                break
            self.waiting.pop()
            self._admit(request, builder)
            builder.add_blocks(request.slot, self.kv.start(request, match))
            if request.num_output_tokens == 0:
                request.num_cached_tokens = match.num_tokens
            if self.kv.enable_prefix_caching:
                self.stats.prefix_queries += request.num_tokens
                self.stats.prefix_hits += match.num_tokens
            deltas = self.kv.reserve(request, match.num_tokens + count)
            assert deltas is not None, "fits() promised these blocks"
            builder.add_blocks(request.slot, deltas)
            self._count_partial(request, count, builder)
            self.kv.announce(request, match.num_tokens + count)
            builder.add_row(request, count)
        for request in passed_over:
            self.waiting.push(request)

    def _match(self, request: Request) -> PrefixMatch | None:
        """What a request starts from; None if it had better wait for what this step computes."""
        match = self.kv.match(request)
        ready = self.kv.num_ready(match) * self.kv.block_size
        if ready == match.num_tokens:
            return match
        if 2 * (match.num_tokens - ready) >= request.num_tokens - ready:
            return None
        return self.kv.match(request, ready // self.kv.block_size)

    def _chunk(self, request: Request, builder: PlanBuilder) -> int:
        """Tokens of a running request to compute in this step."""
        behind = request.num_schedulable()
        return behind if behind <= 1 else self._limit(behind, builder)

    def _limit(self, behind: int, builder: PlanBuilder) -> int:
        if not self.config.enable_chunked_prefill:
            return behind if behind <= builder.budget else 0
        threshold = self.config.long_prefill_token_threshold
        return min(behind, builder.budget, threshold or behind)

    def _is_long(self, behind: int) -> bool:
        return 0 < self.config.long_prefill_token_threshold < behind

    def _count_partial(self, request: Request, count: int, builder: PlanBuilder) -> None:
        behind = request.num_tokens - request.num_planned
        if behind > 1:
            builder.num_partial += count < behind
            builder.num_long_partial += self._is_long(behind)

    def _admit(self, request: Request, builder: PlanBuilder) -> None:
        request.status = Status.RUNNING
        request.slot = self.free_slots.pop()
        if not request.queue_s:
            request.queue_s = max(1e-9, time.time() - request.source.arrival_time_s)
        bisect.insort(self.running, request, key=lambda r: r.order)
        builder.admissions.append(
            Admission(
                slot=request.slot,
                request_id=request.id,
                token_ids=request.tokens.view().copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
            )
        )

    def _preempt(self, request: Request) -> None:
        """Take a running request's blocks away: now, or when its steps in flight have committed."""
        self.stats.num_preemptions += 1
        self.steady.leave(request)
        request.status = Status.DRAINING
        self.draining.add(request)
        self._settle(request)

    # -- results ----------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> Committed:
        """Apply the results of the oldest step in flight."""
        inflight = self.inflight.popleft()
        assert inflight.step == plan.step == result.step, (inflight.step, plan.step, result.step)
        updates = self.take_updates()
        slots, token_ids = inflight.steady.slots, result.token_ids[: len(inflight.steady.slots)]
        if len(slots):
            taken = self.steady.commit(slots, token_ids, list(result.failures))
            if not taken.all():
                self._commit_events(inflight.steady, taken, result, updates)
                slots, token_ids = slots[taken], token_ids[taken]
        if inflight.rows:
            self._commit_rows(inflight, result, updates)
        self._count_step(inflight)
        return Committed(updates, slots, token_ids)

    def _commit_events(
        self,
        steady: SteadyPlan,
        taken: np.ndarray,
        result: StepResult,
        updates: list[RequestUpdate],
    ) -> None:
        """Rows of requests that were steady when they were planned, and to which more happens."""
        for index in np.flatnonzero(~taken).tolist():
            request = self.steady.holder(int(steady.slots[index]))
            row = Row(request, int(steady.starts[index]), 1, sample=True)
            update = self._commit_row(row, int(result.token_ids[index]), result)
            if update is not None:
                updates.append(update)

    def _commit_rows(
        self, inflight: InflightStep, result: StepResult, updates: list[RequestUpdate]
    ) -> None:
        prompt_logprobs = {p.row: p for p in result.prompt_logprobs}
        first = drawn = len(inflight.steady.slots)
        token_ids = result.token_ids[first:].tolist()
        for index, row in enumerate(inflight.rows, first):
            token_id = token_ids[drawn - first] if row.sample else None
            update = self._commit_row(row, token_id, result)
            if update is not None and update.error is None:
                if index in prompt_logprobs:
                    update.prompt_logprobs = _unseen(prompt_logprobs[index], row.request)
                if token_id is not None and result.logprobs is not None:
                    update.logprobs = _pick(result.logprobs, drawn, row.request)
            if update is not None and (
                update.token_ids or update.prompt_logprobs is not None or update.error is not None
            ):
                updates.append(update)
            drawn += row.sample

    def _commit_row(
        self, row: Row, token_id: int | None, result: StepResult
    ) -> RequestUpdate | None:
        """None for a request that has ended before."""
        request = row.request
        self.steady.leave(request)
        request.num_inflight -= row.num_tokens
        request.num_computed += row.num_tokens
        request.num_pending -= row.sample
        update = None
        if token_id == NO_TOKEN:
            self.kv.retract(request)  # of one that has ended before, too
        if not request.is_finished:
            if request.slot in result.failures:
                update = self._fail(request, result.failures[request.slot])
            elif token_id == NO_TOKEN:
                update = self._fail(request, NO_TOKEN_ERROR)
            else:
                update = self._refused(request, token_id) or self._advance(request, token_id)
        if request in self.draining:
            self._settle(request)
        return update

    def _advance(self, request: Request, token_id: int | None) -> RequestUpdate:
        """Publish what is computed and take over a drawn token, which may end the request."""
        if token_id is None:
            self.kv.commit(request)
            return RequestUpdate(request.id, [])
        request.tokens.append(token_id)
        self.kv.commit(request)
        update = RequestUpdate(request.id, [token_id], slot=request.slot)
        if request.num_output_tokens == 1:
            update.num_cached_tokens = request.num_cached_tokens
            update.queue_s = request.queue_s
        if (
            token_id in request.stop_token_ids
            and request.num_output_tokens >= request.params.min_tokens
        ):
            update.finish_reason = FinishReason.STOP
            if request.params.ignore_eos or token_id not in self.eos_token_ids:
                update.stop_reason = token_id
        elif request.num_tokens >= request.max_total_tokens:
            update.finish_reason = FinishReason.LENGTH
        if update.finish_reason is not None:
            self._finish(request, update.finish_reason)
        elif request.grammar is not None and request.grammar.finished:
            self._complete(request, update)
        elif len(self.running) >= self.steady.least_rows:
            self.steady.join(request)
        return update

    def _complete(self, request: Request, update: RequestUpdate) -> None:
        """End a request whose grammar allows no more."""
        self._finish(request, FinishReason.STOP)
        if update.token_ids[-1] in self.eos_token_ids:
            update.finish_reason = FinishReason.STOP
        else:  # the token is text, unlike one that comes with the reason
            self.updates.append(RequestUpdate(request.id, [], finish_reason=FinishReason.STOP))

    def _refused(self, request: Request, token_id: int | None) -> RequestUpdate | None:
        """The end of a request whose grammar does not take over the token."""
        if token_id is None or request.grammar is None:
            return None
        try:
            taken = request.grammar.accept(token_id)
        except (GrammarError, BackendError) as error:
            return self._without_form(request, error)
        return None if taken else self._fail(request, WRONG_TOKEN_ERROR)

    def _without_form(self, request: Request, error: GrammarError | BackendError) -> RequestUpdate:
        """The end of a request that is not held to its form, under the name it was asked by."""
        form = request.params.structured_outputs
        assert form is not None, request.id
        is_refused = isinstance(error, GrammarError)
        reason = FinishReason.REJECTED if is_refused else FinishReason.ERROR
        return self._fail(request, f"{form.asked_as}: {error}", reason)

    def _fail(
        self, request: Request, error: str, reason: FinishReason = FinishReason.ERROR
    ) -> RequestUpdate:
        self._finish(request, reason)
        return RequestUpdate(request.id, [], finish_reason=reason, error=error)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self.steady.leave(request)
        request.finish_reason = reason
        del self.requests[request.id]
        if request.status is Status.COMPILING:
            request.status = Status.FINISHED
            del self.compiling[request]
            return
        if request.status is Status.WAITING:
            request.status = Status.FINISHED
            self.waiting.discard()
            return
        if request.status is Status.RUNNING:
            self.running.remove(request)
        request.status = Status.FINISHED
        self.draining.add(request)
        self._settle(request)

    def _settle(self, request: Request) -> None:
        """Free what a request that left the running ones holds, once no step in flight uses it."""
        if request.num_inflight:
            return
        self.draining.remove(request)
        self.kv.release(request)
        self.free_slots.append(request.slot)
        self.released_slots.append(request.slot)
        if request.status is Status.DRAINING:
            request.reset_for_recompute()
            self.waiting.push(request)

    # -- facts ------------------------------------------------------------------------------------

    def _count_step(self, inflight: InflightStep) -> None:
        stats = self.stats
        stats.num_steps += 1
        stats.num_generation_tokens += len(inflight.steady.slots)
        for request, start, count, sample in inflight.rows:
            stats.num_generation_tokens += sample
            if start < request.num_prompt_tokens:
                stats.num_prompt_tokens += min(count, request.num_prompt_tokens - start)
        stats.step_s = time.monotonic() - inflight.submitted_s

    def snapshot(self) -> EngineStats:
        self.stats.num_running = len(self.running)
        self.stats.num_waiting = len(self.waiting) + len(self.compiling)
        self.stats.kv_usage = self.kv.pool.usage
        self.stats.num_cached_blocks = self.kv.pool.num_known
        return copy.copy(self.stats)

    def check_idle(self) -> None:
        """Integrity of an idle scheduler: everything handed out has come back."""
        if self.requests or self.inflight:
            return
        pool = self.kv.pool
        assert pool.is_whole, f"{pool.num_usable - pool.num_free} blocks leaked"
        assert len(self.free_slots) == self.config.max_num_seqs, "slots leaked"
        assert not self.running and not self.draining and not len(self.waiting)
        assert not self.compiling


def _pick(logprobs: LogprobArrays, index: int, request: Request) -> LogprobArrays | None:
    """The entry of one drawn token, with as many alternatives as its request wants."""
    wanted = request.params.logprobs
    if wanted is None:
        return None
    columns = logprobs.token_ids.shape[1] if wanted < 0 else 1 + wanted
    return LogprobArrays(
        token_ids=logprobs.token_ids[index : index + 1, :columns],
        logprobs=logprobs.logprobs[index : index + 1, :columns],
        ranks=logprobs.ranks[index : index + 1],
    )


def _unseen(part: PromptLogprobs, request: Request) -> LogprobArrays | None:
    """What `part` adds to what was sent so far; a recomputed prompt repeats some."""
    skip = request.num_prompt_logprobs - part.start
    assert skip >= 0, (request.id, part.start, request.num_prompt_logprobs)
    values = part.values
    count = len(values.ranks) - skip
    if count <= 0:
        return None
    request.num_prompt_logprobs += count
    return LogprobArrays(values.token_ids[skip:], values.logprobs[skip:], values.ranks[skip:])
