"""What results of steps do to requests."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np

from vllm.core.forms import end_without_form
from vllm.core.lifecycle import Lifecycle
from vllm.core.request import Request
from vllm.core.row_tokens import RowTokens
from vllm.core.steady import SteadyPlan
from vllm.core.step import InflightStep, Row
from vllm.messages.engine import FinishReason, RequestUpdate
from vllm.messages.step import (
    NO_ROWS,
    NO_TOKEN,
    LogprobArrays,
    PromptLogprobs,
    StepResult,
)
from vllm.structured_output.grammar import BackendError, GrammarError

WRONG_TOKEN_ERROR: Final = "a token was drawn that the grammar does not allow"
NO_TOKEN_ERROR: Final = (
    "no token could be drawn: the model's logits are NaN, or what the request asks for forbids "
    "every token"
)


class Committed(NamedTuple):
    """What a step did: full updates, and (slot, token) of requests that only got a token."""

    updates: list[RequestUpdate]
    slots: np.ndarray = NO_ROWS  # [R] int32
    token_ids: np.ndarray = NO_ROWS  # [R] int32


class Results:
    """Applies the results of steps, in the order in which the steps were planned."""

    def __init__(self, lifecycle: Lifecycle, eos_token_ids: frozenset[int]) -> None:
        self._lifecycle = lifecycle
        self._kv = lifecycle.kv
        self._steady = lifecycle.steady
        self._stats = lifecycle.stats
        self._eos_token_ids = eos_token_ids

    def commit(self, inflight: InflightStep, result: StepResult) -> Committed:
        updates = self._lifecycle.take_updates()
        drawn = RowTokens(result)
        slots = inflight.steady.slots
        token_ids, several = drawn.first(len(slots))
        if len(slots):
            apart = list(result.failures)
            if several:
                apart += slots[several].tolist()
            taken = self._steady.commit(slots, token_ids, apart)
            if not taken.all():
                self._commit_events(inflight.steady, taken, drawn, result, updates)
                slots, token_ids = slots[taken], token_ids[taken]
        if inflight.rows:
            self._commit_rows(inflight, drawn, result, updates)
        if inflight.rows or len(inflight.steady.slots):
            self._count_step(inflight, result)
        return Committed(updates, slots, token_ids)

    def _commit_events(
        self,
        steady: SteadyPlan,
        taken: np.ndarray,
        drawn: RowTokens,
        result: StepResult,
        updates: list[RequestUpdate],
    ) -> None:
        """Rows of requests that were steady when they were planned, and to which more happens."""
        for index in np.flatnonzero(~taken).tolist():
            request = self._steady.holder(int(steady.slots[index]))
            row = Row(request, int(steady.starts[index]), 1, sample=True)
            update = self._commit_row(row, drawn.of_row(index), result)
            if update is not None:
                updates.append(update)

    def _commit_rows(
        self,
        inflight: InflightStep,
        drawn: RowTokens,
        result: StepResult,
        updates: list[RequestUpdate],
    ) -> None:
        prompt_logprobs = {p.row: p for p in result.prompt_logprobs}
        first = drawing = len(inflight.steady.slots)
        token_ids = iter(drawn.of_rows(first))
        for index, row in enumerate(inflight.rows, first):
            update = self._commit_row(row, next(token_ids) if row.sample else [], result)
            if update is not None and update.error is None:
                if index in prompt_logprobs:
                    update.prompt_logprobs = _unseen(prompt_logprobs[index], row.request)
                if update.token_ids and result.logprobs is not None:
                    begin, _ = drawn.span(drawing)
                    end = begin + len(update.token_ids)
                    update.logprobs = _pick(result.logprobs, begin, end, row.request)
            if update is not None and (
                update.token_ids or update.prompt_logprobs is not None or update.error is not None
            ):
                updates.append(update)
            drawing += row.sample

    def _commit_row(
        self, row: Row, token_ids: list[int], result: StepResult
    ) -> RequestUpdate | None:
        """None for a request that has ended before."""
        request = row.request
        self._steady.leave(request)
        request.num_inflight -= row.num_tokens
        request.num_computed += row.num_tokens
        request.num_pending -= row.sample
        update = None
        is_void = NO_TOKEN in token_ids
        if is_void:
            self._kv.retract(request)  # also if the request has ended before
        if not request.is_finished:
            if request.slot in result.failures:
                update = self._lifecycle.fail(request, result.failures[request.slot])
            elif is_void:
                update = self._lifecycle.fail(request, NO_TOKEN_ERROR)
            else:
                update = self._advance(request, token_ids)
        if request in self._lifecycle.draining:
            self._lifecycle.settle(request)
        return update

    def _advance(self, request: Request, token_ids: list[int]) -> RequestUpdate:
        """Publish what is computed and take over drawn tokens, one of which may end the request.

        Tokens behind the one that ends it are dropped.
        """
        if not token_ids:
            self._kv.commit(request)
            return RequestUpdate(request.id, [])
        update = RequestUpdate(request.id, [], slot=request.slot)
        if not request.num_output_tokens:
            update.num_cached_tokens = request.num_cached_tokens
            update.queue_s = request.queue_s
        for token_id in token_ids:
            if request.grammar is not None:
                refusal = self._refusal(request, token_id)
                if refusal is not None:
                    return refusal
            request.tokens.append(token_id)
            update.token_ids.append(token_id)
            reason = self._reason_to_end(request, token_id)
            if reason is not None or (request.grammar is not None and request.grammar.finished):
                break
        self._kv.commit(request)
        if reason is not None:
            self._end(request, reason, update)
        elif request.grammar is not None and request.grammar.finished:
            self._complete(request, update)
        elif len(self._lifecycle.running) >= self._steady.least_rows:
            self._steady.join(request)
        return update

    def _reason_to_end(self, request: Request, token_id: int) -> FinishReason | None:
        """Why the request ends with `token_id`, its newest; None if it does not."""
        if (
            token_id in request.stop_token_ids
            and request.num_output_tokens >= request.params.min_tokens
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if request.num_tokens >= request.max_total_tokens else None

    def _end(self, request: Request, reason: FinishReason, update: RequestUpdate) -> None:
        update.finish_reason = reason
        last = update.token_ids[-1]
        if reason is FinishReason.STOP and (
            request.params.ignore_eos or last not in self._eos_token_ids
        ):
            update.stop_reason = last
        self._lifecycle.finish(request, reason)

    def _complete(self, request: Request, update: RequestUpdate) -> None:
        """End a request whose grammar allows no more."""
        self._lifecycle.finish(request, FinishReason.STOP)
        if update.token_ids[-1] in self._eos_token_ids:
            update.finish_reason = FinishReason.STOP
        else:  # the token is text, unlike one that comes with the reason
            end = RequestUpdate(request.id, [], finish_reason=FinishReason.STOP)
            self._lifecycle.add_update(end)

    def _refusal(self, request: Request, token_id: int) -> RequestUpdate | None:
        """The end of a request whose grammar does not take over the token."""
        assert request.grammar is not None
        try:
            taken = request.grammar.accept(token_id)
        except (GrammarError, BackendError) as error:
            return end_without_form(self._lifecycle, request, error)
        return None if taken else self._lifecycle.fail(request, WRONG_TOKEN_ERROR)

    def _count_step(self, inflight: InflightStep, result: StepResult) -> None:
        stats = self._stats
        stats.num_steps += 1
        stats.num_generation_tokens += len(result.token_ids)
        for request, start, count, _ in inflight.rows:
            if start < request.num_prompt_tokens:
                stats.num_prompt_tokens += min(count, request.num_prompt_tokens - start)
        stats.step_s = time.monotonic() - inflight.submitted_s


def _pick(logprobs: LogprobArrays, begin: int, end: int, request: Request) -> LogprobArrays | None:
    """Entries [begin, end), with as many alternatives as the request wants."""
    wanted = request.params.logprobs
    if wanted is None:
        return None
    columns = logprobs.token_ids.shape[1] if wanted < 0 else 1 + wanted
    return LogprobArrays(
        token_ids=logprobs.token_ids[begin:end, :columns],
        logprobs=logprobs.logprobs[begin:end, :columns],
        ranks=logprobs.ranks[begin:end],
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
