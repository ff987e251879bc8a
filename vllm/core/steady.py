"""SteadyRows: requests that only decode, as arrays, so that a step costs no Python per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from vllm.core.kv_cache.manager import KVCacheManager
from vllm.core.request import Request, Status
from vllm.messages.step import NO_ROWS, Int32Array

FEW_ROWS: Final = 8  # with fewer, calls that work on arrays cost more than a loop
RECENT_TOKENS: Final = 64  # drawn and not yet in the request's own buffer
_NO_STOP: Final = -2  # no token id, and not NO_TOKEN


class SteadyPlan(NamedTuple):
    """Rows of one token each, all of which draw."""

    slots: Int32Array  # [R]
    starts: Int32Array  # [R]
    begins_block: np.ndarray  # int64: rows whose token is the first of a block
    values: Int32Array  # [R] tokens at `starts`, if every request has one draw in flight at most


NO_STEADY_ROWS: Final = SteadyPlan(NO_ROWS, NO_ROWS, NO_ROWS, NO_ROWS)


class SteadyRows:
    """Owns the progress of requests whose steps are all alike: one token computed, one drawn.

    While a request is in here its `num_computed`, `num_inflight`, `num_pending` and `tokens` are
    out of date; `leave` sets them right. Whatever happens to a request but the next token
    happens outside: it leaves first, and may join again.
    """

    def __init__(self, num_slots: int, kv: KVCacheManager, has_one_draw: bool) -> None:
        """`has_one_draw`: no request may have more in flight than one; else as many as steps."""
        self.least_rows = FEW_ROWS
        self._has_one_draw = has_one_draw
        self._kv = kv
        self._block_size = kv.block_size
        self._is_due = kv.commit_residues()
        self._holders: list[Request | None] = [None] * num_slots  # the last that joined
        self._is_in = np.zeros(num_slots, np.bool_)
        self._num_in = 0
        self._slots = NO_ROWS  # that are in; valid unless changed
        self._is_changed = False
        # By slot. All positions below `computed` are committed, those up to `planned` in flight,
        # and computed + 1 tokens are known on the host.
        self._planned = np.zeros(num_slots, np.int32)
        self._computed = np.zeros(num_slots, np.int32)
        self._limit = np.zeros(num_slots, np.int32)  # tokens that end the request
        self._stops = np.full((num_slots, 1), _NO_STOP, np.int32)
        self._recent = np.zeros((num_slots, RECENT_TOKENS), np.int32)
        self._num_recent = np.zeros(num_slots, np.int32)
        self._last = np.zeros(num_slots, np.int32)  # the token at `computed`

    def __len__(self) -> int:
        return self._num_in

    def __contains__(self, request: Request) -> bool:
        return self._holders[request.slot] is request and bool(self._is_in[request.slot])

    def others(self, running: Sequence[Request]) -> list[Request]:
        """The running requests that are not in here, in their order."""
        is_in = self._is_in.tolist()  # of running requests, one per slot
        return [request for request in running if not is_in[request.slot]]

    def holder(self, slot: int) -> Request:
        """The request that joined last in this slot: whose rows in flight are."""
        request = self._holders[slot]
        assert request is not None, slot
        return request

    def join(self, request: Request) -> None:
        """Take a running request over, if its next steps are all alike."""
        if (
            request.status is not Status.RUNNING
            or request.needs_values
            or request.params.logprobs is not None
            or request.num_inflight != request.num_pending
            or request.num_tokens != request.num_computed + 1
        ):
            return
        slot = request.slot
        self._holders[slot] = request
        self._is_in[slot] = self._is_changed = True
        self._num_in += 1
        self._planned[slot] = request.num_planned
        self._computed[slot] = request.num_computed
        self._limit[slot] = request.max_total_tokens
        self._num_recent[slot] = 0
        if self._has_one_draw:
            self._last[slot] = request.tokens.view(request.num_computed)[0]
        stops = request.stop_token_ids
        missing = len(stops) - self._stops.shape[1]
        if missing > 0:
            padding = ((0, 0), (0, missing))
            self._stops = np.pad(self._stops, padding, constant_values=_NO_STOP)
        self._stops[slot] = _NO_STOP
        if stops:
            self._stops[slot, : len(stops)] = list(stops)

    def leave(self, request: Request) -> None:
        """Set the request right and forget it; nothing for one that is not in here."""
        if request not in self:
            return
        self._settle(request)
        self._is_in[request.slot] = False
        self._is_changed = True
        self._num_in -= 1

    def leave_all(self) -> None:
        for slot in self._current().tolist():
            self.leave(self.holder(slot))

    def next_rows(self, most_rows: int) -> SteadyPlan:
        """The next row of each request that can go on, at most `most_rows`. Changes nothing.

        A request waits for its last token, and for one in flight if it may have one draw only.
        """
        if not self._num_in:
            return NO_STEADY_ROWS
        slots = self._current()
        starts = self._planned[slots]
        going_on = starts + 1 < self._limit[slots]
        if self._has_one_draw:
            going_on &= starts == self._computed[slots]
        if not going_on.all():
            slots, starts = slots[going_on], starts[going_on]
        if len(slots) > most_rows:
            slots, starts = slots[:most_rows], starts[:most_rows]
        begins_block = np.flatnonzero(starts % self._block_size == 0)
        values = self._last[slots] if self._has_one_draw else NO_ROWS
        return SteadyPlan(slots, starts, begins_block, values)

    def submit(self, plan: SteadyPlan) -> None:
        """The rows of `next_rows` are in flight."""
        self._planned[plan.slots] += 1

    def commit(self, slots: Int32Array, token_ids: Int32Array, apart: list[int]) -> np.ndarray:
        """Take over tokens drawn in these slots, where nothing else happens.

        -> [R] bool: rows taken over. Nothing has changed for the others: their requests have left
        or end here, or their slots are in `apart`.
        """
        taken: np.ndarray = self._is_in[slots]
        computed = self._computed[slots] + 1
        taken &= (token_ids >= 0) & (computed + 1 < self._limit[slots])
        if self._stops.shape[1] == 1:  # the usual case, in half the time
            taken &= self._stops[slots, 0] != token_ids
        else:
            taken &= (self._stops[slots] != token_ids[:, None]).all(axis=1)
        if apart:
            taken &= ~np.isin(slots, apart)
        if not taken.all():
            slots, token_ids, computed = slots[taken], token_ids[taken], computed[taken]
        self._computed[slots] = computed
        ends = self._num_recent[slots]
        self._recent[slots, ends] = token_ids
        if self._has_one_draw:
            self._last[slots] = token_ids
        ends += 1
        self._num_recent[slots] = ends
        due = self._is_due[computed % self._block_size] | (ends == RECENT_TOKENS)
        for slot in slots[due].tolist():
            request = self.holder(slot)
            self._settle(request)
            self._kv.commit(request)
        return taken

    def _current(self) -> Int32Array:
        if self._is_changed:
            self._slots = np.flatnonzero(self._is_in).astype(np.int32)
            self._is_changed = False
        return self._slots

    def _settle(self, request: Request) -> None:
        slot = request.slot
        request.num_computed = int(self._computed[slot])
        request.num_given = int(self._planned[slot])
        request.num_inflight = request.num_pending = request.num_given - request.num_computed
        request.tokens.extend(self._recent[slot, : self._num_recent[slot]])
        self._num_recent[slot] = 0
