"""What one engine step computes and what comes back: the only messages between scheduler and ranks.

Everything that has one entry per row is an array, so that a step of 256 rows costs the same handful
of NumPy calls as a step of one. A plan carries deltas: a request's tokens and sampling parameters
travel once, at admission; afterwards only new blocks and the (slot, start, count) of its rows do.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from vllm.sampling_params import SamplingParams

Int32Array = NDArray[np.int32]
NO_ROWS: Final = np.empty(0, np.int32)
NO_MASKS: Final = np.empty((0, 0), np.int32)
NO_VALUES: Final = np.empty((0, 3), np.int32)
NO_TOKEN: Final = -1  # drawn from logits that are NaN, or forbid every token


class Admission(msgspec.Struct, frozen=True):
    """A request takes a slot: all that the device needs to know of it until it leaves.

    `token_ids` are the prompt and every committed output token (there are some after a preemption),
    int32, so that the device row can be restored exactly. `params.seed` is always set here.
    """

    slot: int
    request_id: str
    token_ids: np.ndarray
    num_prompt_tokens: int
    params: SamplingParams


class StepPlan(msgspec.Struct, frozen=True):
    """One step. Ranks apply, in this order: releases, admissions, given values, blocks, rows.

    Row r computes the token positions [starts[r], starts[r] + counts[r]) of the request in
    slots[r]; where samples[r], the token at position starts[r] + counts[r] is drawn and written to
    the slot's token row on the device. Rows that do not sample are all but the last chunk of a
    prompt.
    """

    step: int
    slots: np.ndarray  # [R] int32
    starts: np.ndarray  # [R] int32
    counts: np.ndarray  # [R] int32
    samples: np.ndarray  # [R] bool
    releases: np.ndarray  # [*] int32: slots whose requests have left
    admissions: tuple[Admission, ...]
    blocks: np.ndarray  # [*, 4] int32: slot, KV group, index in the block table, block id
    # Rows that draw only from tokens a grammar allows: which rows, ascending, and of each a bit per
    # token of the vocabulary, least significant first.
    masked_rows: np.ndarray = NO_ROWS  # [G] int32
    masks: np.ndarray = NO_MASKS  # [G, ceil(V / 32)] int32
    # Tokens whose values ranks may not have, because another rank or the host chose them.
    given: np.ndarray = NO_VALUES  # [*, 3] int32: slot, position, token id

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())


class LogprobArrays(msgspec.Struct, frozen=True):
    """Log-probabilities of L token positions, k alternatives each.

    Column 0 is the token that was sampled (or that the prompt has); columns 1..k are the k most
    likely tokens, best first. A row whose request asked for fewer uses a prefix of its columns.
    """

    token_ids: np.ndarray  # [L, 1 + k] int32
    logprobs: np.ndarray  # [L, 1 + k] float32
    ranks: np.ndarray  # [L] int32: 1-based rank of column 0 in the whole vocabulary


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Prompt log-probabilities of one row: entry i belongs to the token at position start + i."""

    row: int
    start: int
    values: LogprobArrays


class StepResult(msgspec.Struct, frozen=True):
    """What a step produced, for the S rows with samples[r] set, in row order."""

    step: int
    token_ids: np.ndarray  # [N] int32, row after row; NO_TOKEN fails its request
    logprobs: LogprobArrays | None = None  # N entries, when any row asked for log-probabilities
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    failures: dict[int, str] = {}  # by slot: requests whose own code failed; their tokens are void
    counts: np.ndarray = NO_ROWS  # [S] int32: tokens of each row, at least one; empty: one each
    is_idle: bool = False  # of copies that step together, none had anything to launch
