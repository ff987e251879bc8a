"""How much of a prompt a step computes."""

from __future__ import annotations

import sys

from vllm.config.scheduler import SchedulerConfig
from vllm.core.request import Request, Status
from vllm.core.step import Step


class PromptChunks:
    """A row limit: prompts are computed in chunks, and few long ones at a time."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._has_chunks = config.enable_chunked_prefill
        # Longer prompts are long.
        self._threshold = config.long_prefill_token_threshold or sys.maxsize
        self._most_partial = config.max_num_partial_prefills
        self._most_long_partial = config.max_long_partial_prefills
        self._num_partial = 0  # prompts that this step leaves unfinished
        self._num_long_partial = 0

    def begin_step(self) -> None:
        self._num_partial = self._num_long_partial = 0

    def limit(self, request: Request, behind: int, step: Step) -> int | None:
        if not self._has_chunks:
            return behind if behind <= step.tokens_left else 0
        count = min(behind, step.tokens_left, max(0, step.prompt_tokens_left), self._threshold)
        if request.status is Status.RUNNING:
            return count  # admitted under the rules that follow
        if count < behind and self._num_partial >= self._most_partial:
            return 0
        if behind > self._threshold and self._num_long_partial >= self._most_long_partial:
            return None
        return count

    def take(self, request: Request, behind: int, count: int) -> None:
        self._num_partial += count < behind
        self._num_long_partial += behind > self._threshold
