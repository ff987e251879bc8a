"""Intake: how many requests a core has taken, and what prompts are pending."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.messages.engine import EngineRequest, RequestUpdate


class Intake:
    """Owner of the counts. Requests without an estimate, as a single core gets, cost a count."""

    def __init__(self, num_front_ends: int) -> None:
        self.num_taken = [0] * num_front_ends  # requests, also those that are refused
        self.num_pending_tokens = 0  # `num_uncached` of requests that have not drawn a token
        self._pending: dict[str, int] = {}  # the same by request

    def count(self, front_end: int) -> None:
        """A request has come from a front end."""
        self.num_taken[front_end] += 1

    def begin(self, request: EngineRequest) -> None:
        """The core gets a request."""
        if request.num_uncached:
            self._pending[request.request_id] = request.num_uncached
            self.num_pending_tokens += request.num_uncached

    def settle(self, updates: Iterable[RequestUpdate]) -> None:
        """What a step did: requests with tokens or an end are pending no more."""
        if not self._pending:
            return
        for update in updates:
            if update.token_ids or update.finish_reason is not None:
                self.num_pending_tokens -= self._pending.pop(update.request_id, 0)
