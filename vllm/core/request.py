"""Request: the host's truth about one sequence. Owned and changed by the scheduler alone."""

from __future__ import annotations

import enum

import numpy as np

from vllm.messages.engine import EngineRequest, FinishReason
from vllm.structured_output.grammar import Grammar


class Status(enum.Enum):
    COMPILING = enum.auto()  # holds nothing, and waits for its grammar
    WAITING = enum.auto()  # holds nothing; new, or preempted and drained
    RUNNING = enum.auto()  # holds a slot and blocks
    DRAINING = enum.auto()  # preempted, with steps in flight that still use its blocks
    FINISHED = enum.auto()  # ended; holds its slot and blocks while steps are in flight


class TokenBuffer:
    """Growing int32 array of token ids."""

    __slots__ = ("_array", "length")

    def __init__(self, token_ids: list[int]) -> None:
        self.length = len(token_ids)
        self._array = np.empty(self.length + 64, dtype=np.int32)
        self._array[: self.length] = token_ids

    def __len__(self) -> int:
        return self.length

    def append(self, token_id: int) -> None:
        if self.length == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self.length] = token_id
        self.length += 1

    def extend(self, token_ids: np.ndarray) -> None:
        end = self.length + len(token_ids)
        if end > len(self._array):
            grown = np.empty(max(2 * len(self._array), end), np.int32)
            grown[: self.length] = self._array[: self.length]
            self._array = grown
        self._array[self.length : end] = token_ids
        self.length = end

    def view(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens [start, stop), not copied: valid until the next append."""
        return self._array[start : self.length if stop is None else min(stop, self.length)]


class Request:
    """One sequence from arrival to its last committed step.

    Positions below `num_computed` have their keys and values written by committed steps; the
    `num_inflight` positions after it belong to steps whose results have not arrived. `num_pending`
    of those steps draw a token, so the device knows `num_tokens + num_pending` tokens.
    """

    __slots__ = (
        "block_hashes",
        "blocks",
        "finish_reason",
        "grammar",
        "id",
        "max_total_tokens",
        "most_draws",
        "needs_values",
        "num_cached_tokens",
        "num_computed",
        "num_given",
        "num_inflight",
        "num_pending",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_published",
        "num_released",
        "order",
        "params",
        "queue_s",
        "slot",
        "source",
        "status",
        "stop_token_ids",
        "tokens",
    )

    def __init__(
        self,
        source: EngineRequest,
        order: tuple[float, ...],
        eos_token_ids: frozenset[int],
        max_len: int,
        most_draws: int,
    ) -> None:
        """`most_draws`: steps in flight that may draw a token of it; one if it needs the values."""
        self.source = source
        self.id = source.request_id
        self.params = source.params
        self.order = order  # position among requests: lower is served first, preempted last
        self.tokens = TokenBuffer(source.prompt_token_ids)
        self.num_prompt_tokens = len(self.tokens)
        assert self.params.max_tokens is not None
        self.max_total_tokens = min(self.num_prompt_tokens + self.params.max_tokens, max_len)
        self.stop_token_ids = self.params.ending_token_ids(eos_token_ids)
        # The host decides something from each drawn token before the next is drawn.
        self.needs_values = bool(self.params.logits_processors or self.params.structured_outputs)
        self.most_draws = 1 if self.needs_values else most_draws
        self.grammar: Grammar | None = None  # from when it is compiled
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None
        self.slot = 0
        self.queue_s = 0.0
        self.num_computed = 0
        self.num_inflight = 0
        self.num_pending = 0
        self.num_cached_tokens = 0
        self.num_given = 0  # tokens whose values plans have brought to the ranks
        self.num_prompt_logprobs = 1  # next prompt position to report; the first token has none
        # The KV-cache manager's, per KV group: block ids by position in the sequence (0 where the
        # sliding window has passed), how many lead blocks it has passed; and, for all groups, the
        # hashes of full blocks and how many of them are published to the prefix cache.
        self.blocks: list[list[int]] = []
        self.num_released: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_published = 0

    @property
    def num_tokens(self) -> int:
        return self.tokens.length

    @property
    def num_planned(self) -> int:
        """Positions computed or in flight: where the next row of this request starts."""
        return self.num_computed + self.num_inflight

    @property
    def is_decoding(self) -> bool:
        """Whether the next row of this request goes on from a drawn token."""
        return self.num_computed + self.num_inflight >= self.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        return self.tokens.length - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    def num_schedulable(self) -> int:
        """Positions that a next row could compute; 0 when this request cannot go on yet.

        Lengths alone decide: a token drawn in flight counts as known (its value is on the device),
        and nothing is planned past the position that ends the request by length. No more than
        `most_draws` draws are in flight.
        """
        if self.num_pending >= self.most_draws:
            return 0
        known = self.tokens.length + self.num_pending
        if known >= self.max_total_tokens and self.num_pending:
            return 0
        return known - self.num_planned

    def reset_for_recompute(self) -> None:
        """Forget everything computed, after preemption; committed tokens stay."""
        assert self.num_inflight == 0 and self.num_pending == 0, self.id
        self.status = Status.WAITING
        self.num_computed = 0
        self.num_published = 0
