"""How much of the prompts a step computes where pipeline stages share the work."""

from __future__ import annotations

from typing import Final

from vllm.config.scheduler import SchedulerConfig
from vllm.core.lifecycle import Lifecycle

# Stages compute steps that follow each other at the same time, and each waits for the longest of
# them. With more pieces steps are more alike, and the last stage begins sooner.
PIECES_PER_STAGE: Final = 8


class StageChunks:
    """How many tokens of prompts a step takes: a part of what could be computed, not all of it.

    So a step has about as many as the next one, which another stage computes meanwhile. They are
    `pipeline_chunk_tokens` or more, below which computing a token costs more.
    """

    def __init__(self, config: SchedulerConfig, lifecycle: Lifecycle, num_stages: int) -> None:
        self._lifecycle = lifecycle
        self._fewest = config.pipeline_chunk_tokens
        self._most_pieces = PIECES_PER_STAGE * num_stages

    def most_tokens(self) -> int:
        """Tokens of prompts that the next step may take.

        They are one of several equal pieces of those that could be computed.
        """
        num_tokens = self._running_tokens() + self._waiting_tokens()
        pieces = max(1, min(self._most_pieces, num_tokens // self._fewest))
        return max(self._fewest, -(-num_tokens // pieces))

    def _running_tokens(self) -> int:
        """What running requests have left of their prompts."""
        running, steady = self._lifecycle.running, self._lifecycle.steady
        if len(steady) == len(running):
            return 0
        behind = (request.num_schedulable() for request in steady.others(running))
        return sum(count for count in behind if count > 1)

    def _waiting_tokens(self) -> int:
        """About how many tokens the requests have for which there are slots.

        Requests are as long as the average of those that wait: there may be many thousands.
        """
        waiting, num_free = self._lifecycle.waiting, len(self._lifecycle.free_slots)
        if len(waiting) <= num_free:
            return waiting.num_tokens
        return -(-waiting.num_tokens * num_free // len(waiting))
