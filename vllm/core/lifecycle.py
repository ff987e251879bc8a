"""Lifecycle: where every request is between its arrival and its last step in flight."""

from __future__ import annotations

import bisect
import time
from typing import TYPE_CHECKING

from vllm.core.policy import POLICIES, WaitingQueue
from vllm.core.request import Request, Status
from vllm.core.steady import SteadyRows
from vllm.messages.engine import EngineRequest, EngineStats, FinishReason, RequestUpdate
from vllm.messages.step import Admission
from vllm.structured_output.compiler import GrammarCompiler, NoGrammars, PendingGrammar

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.core.kv_cache.manager import KVCacheManager


class Lifecycle:
    """Owner of all requests and slots. Passes and results move requests through its methods.

    A request waits for its grammar (`compiling`), then for a slot (`waiting`), is in `running`, and
    drains when it has been preempted or has ended while steps in flight use its slot and blocks.
    """

    def __init__(
        self, config: VllmConfig, kv: KVCacheManager, grammars: GrammarCompiler | NoGrammars
    ) -> None:
        self.kv = kv
        self.stats = EngineStats(num_blocks=kv.pool.num_blocks)
        self.by_id: dict[str, Request] = {}
        self.compiling: dict[Request, PendingGrammar] = {}
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # in policy order
        self.draining: set[Request] = set()
        # A stage knows no token that another one drew before the host gives it the value.
        num_stages = config.parallel.pipeline_parallel_size
        self.most_draws = config.scheduler.pipeline_depth if num_stages == 1 else 1
        # Running requests that only decode. `steady` has their progress, not their fields.
        self.steady = SteadyRows(config.scheduler.max_num_seqs + 1, kv, num_stages > 1)
        self.max_num_seqs = config.scheduler.max_num_seqs
        self.free_slots = list(range(self.max_num_seqs, 0, -1))  # slot 0 is the dummy row's
        self._grammars = grammars
        self._order_of = POLICIES[config.scheduler.policy]
        self._max_model_len = config.model.max_model_len
        self._eos_token_ids = config.model.eos_token_ids
        self._num_arrivals = 0
        self._released_slots: list[int] = []
        self._updates: list[RequestUpdate] = []

    @property
    def has_updates(self) -> bool:
        return bool(self._updates)

    def take_updates(self) -> list[RequestUpdate]:
        """Ends of requests that no step brought, since the last call."""
        updates, self._updates = self._updates, []
        return updates

    def take_released_slots(self) -> list[int]:
        """Slots that became free since the last call; the next plan names them to the ranks."""
        slots, self._released_slots = self._released_slots, []
        return slots

    def add(self, source: EngineRequest) -> None:
        """Queue a request that the Processor has checked."""
        assert source.request_id not in self.by_id, f"request id {source.request_id} is in use"
        self._num_arrivals += 1
        request = Request(
            source,
            self._order_of(source, self._num_arrivals),
            self._eos_token_ids,
            self._max_model_len,
            self.most_draws,
        )
        assert 0 < request.num_tokens < self._max_model_len, (request.id, request.num_tokens)
        self.by_id[request.id] = request
        form = request.params.structured_outputs
        if form is None:
            self.waiting.push(request)
            return
        request.status = Status.COMPILING
        self.compiling[request] = self._grammars.submit(form)

    def abort(self, request_id: str) -> None:
        """End a request wherever it is; an unknown id has ended already."""
        request = self.by_id.get(request_id)
        if request is not None and not request.is_finished:
            self.finish(request, FinishReason.ABORT)
            self.add_update(RequestUpdate(request_id, [], finish_reason=FinishReason.ABORT))

    def add_update(self, update: RequestUpdate) -> None:
        """Have the next results bring an update that belongs to no step."""
        self._updates.append(update)

    def admit(self, request: Request) -> Admission:
        """Give a waiting request a slot."""
        request.status = Status.RUNNING
        request.slot = self.free_slots.pop()
        request.num_given = request.num_tokens
        if not request.queue_s:
            request.queue_s = max(1e-9, time.time() - request.source.arrival_time_s)
        bisect.insort(self.running, request, key=lambda r: r.order)
        return Admission(
            slot=request.slot,
            request_id=request.id,
            token_ids=request.tokens.view().copy(),
            num_prompt_tokens=request.num_prompt_tokens,
            params=request.params,
        )

    def preempt_last(self) -> Request:
        """Take the blocks of the last running request: now, or when its steps have committed."""
        request = self.running.pop()
        self.stats.num_preemptions += 1
        self.steady.leave(request)
        request.status = Status.DRAINING
        self.draining.add(request)
        self.settle(request)
        return request

    def fail(
        self, request: Request, error: str, reason: FinishReason = FinishReason.ERROR
    ) -> RequestUpdate:
        """End a request that cannot go on; the caller sends the update."""
        self.finish(request, reason)
        return RequestUpdate(request.id, [], finish_reason=reason, error=error)

    def finish(self, request: Request, reason: FinishReason) -> None:
        self.steady.leave(request)
        request.finish_reason = reason
        del self.by_id[request.id]
        status, request.status = request.status, Status.FINISHED
        if status is Status.COMPILING:
            del self.compiling[request]
            return
        if status is Status.WAITING:
            self.waiting.discard(request)
            return
        if status is Status.RUNNING:
            self.running.remove(request)
        self.draining.add(request)
        self.settle(request)

    def settle(self, request: Request) -> None:
        """Free what a draining request holds, once no step in flight uses it."""
        if request.num_inflight:
            return
        self.draining.remove(request)
        self.kv.release(request)
        self.free_slots.append(request.slot)
        self._released_slots.append(request.slot)
        if request.status is Status.DRAINING:
            request.reset_for_recompute()
            self.waiting.push(request)

    def check_idle(self) -> None:
        """Assert that everything handed out has come back. For a lifecycle without requests."""
        pool = self.kv.pool
        assert pool.is_whole, f"{pool.num_usable - pool.num_free} blocks leaked"
        assert len(self.free_slots) == self.max_num_seqs, "slots leaked"
        assert not self.running and not self.draining and not len(self.waiting)
        assert not self.waiting.num_tokens, self.waiting.num_tokens
        assert not self.compiling
