"""Step: the step being planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.core.kv_cache.manager import BlockDelta
from vllm.core.request import Request
from vllm.core.steady import NO_STEADY_ROWS, SteadyPlan
from vllm.messages.step import NO_MASKS, NO_ROWS, NO_VALUES, Admission, Int32Array, StepPlan
from vllm.structured_output.grammar import Grammar

_NO_BLOCKS: Final = np.empty((0, 4), np.int32)


def _read_only_ones(count: int) -> tuple[Int32Array, NDArray[np.bool_]]:
    counts, samples = np.ones(count, np.int32), np.ones(count, np.bool_)
    counts.flags.writeable = samples.flags.writeable = False
    return counts, samples


_all_ones = _read_only_ones(1024)


def _ones(count: int) -> tuple[Int32Array, NDArray[np.bool_]]:
    """Counts and samples of `count` rows that decode, shared by all plans."""
    global _all_ones
    if count > len(_all_ones[0]):
        _all_ones = _read_only_ones(2 * count)
    return _all_ones[0][:count], _all_ones[1][:count]


class Row(NamedTuple):
    """A planned row, kept until its step commits."""

    request: Request
    start: int
    num_tokens: int
    sample: bool


class InflightStep(NamedTuple):
    """A planned step, until it commits. Its rows are `steady`'s and after them `rows`."""

    step: int
    steady: SteadyPlan
    rows: list[Row]
    submitted_s: float


class Step:
    """Rows and deltas of the step being planned, and what is left of its limits.

    `tokens_left`: positions that it can still compute. `decodes_left`: rows that it can still take
    of requests that go on from a drawn token. `prompt_tokens_left`: positions of prompts that it
    can still cut off; a prompt that is not to be cut may have more.
    """

    def __init__(
        self,
        most_tokens: int,
        most_decodes: int,
        most_prompt_tokens: int,
        gives_values: bool = False,
    ) -> None:
        """`gives_values`: ranks do not know drawn tokens unless the plan brings them."""
        self.tokens_left = most_tokens
        self.prompt_tokens_left = most_prompt_tokens
        self.decodes_left = most_decodes
        self.steady = NO_STEADY_ROWS  # the first rows
        self.rows: list[Row] = []
        self.admissions: list[Admission] = []
        self.is_short_of_blocks = False  # a running request did not get what it needs
        self._gives_values = gives_values
        self._given: list[tuple[int, int, int]] = []
        self._block_slots: list[int] = []
        self._blocks: list[BlockDelta] = []
        self._masked_rows: list[int] = []
        self._grammars: list[Grammar] = []

    @property
    def is_empty(self) -> bool:
        return not self.rows and not len(self.steady.slots)

    def begin_with(self, steady: SteadyPlan) -> None:
        """Take these rows first, before any other."""
        assert self.is_empty
        self.steady = steady
        self.tokens_left -= len(steady.slots)
        self.decodes_left -= len(steady.slots)

    def add_blocks(self, slot: int, deltas: list[BlockDelta]) -> None:
        self._block_slots.extend([slot] * len(deltas))
        self._blocks.extend(deltas)

    def add_row(self, request: Request, count: int) -> None:
        start = request.num_planned
        known = request.num_tokens + request.num_pending
        row = Row(request, start, count, sample=start + count == known)
        if row.sample and request.grammar is not None and request.grammar.restricts:
            self._masked_rows.append(len(self.steady.slots) + len(self.rows))
            self._grammars.append(request.grammar)
        if self._gives_values:
            self._give(request, start + count)
        self.rows.append(row)
        self.tokens_left -= count
        self.decodes_left -= request.is_decoding
        if known - start > 1 or not request.is_decoding:  # what a preempted request drew is known
            self.prompt_tokens_left -= count
        request.num_inflight += count
        request.num_pending += row.sample

    def _give(self, request: Request, upto: int) -> None:
        """Have the plan bring the tokens below `upto` that were drawn since the last admission."""
        first = request.num_given
        if first < upto:
            token_ids = request.tokens.view(first, upto).tolist()
            self._given += [(request.slot, first + i, t) for i, t in enumerate(token_ids)]
            request.num_given = upto

    def build(self, step: int, releases: Sequence[int], mask_words: int) -> StepPlan:
        blocks = _NO_BLOCKS
        if self._blocks:
            blocks = np.empty((len(self._blocks), 4), np.int32)
            blocks[:, 0] = self._block_slots
            blocks[:, 1:] = np.array(self._blocks, np.int32)
        masks = NO_MASKS
        if self._grammars:
            masks = np.empty((len(self._grammars), mask_words), np.int32)
            for mask, grammar in zip(masks, self._grammars, strict=True):
                grammar.fill_mask(mask)
        slots, starts, counts, samples = self._columns()
        return StepPlan(
            step=step,
            slots=slots,
            starts=starts,
            counts=counts,
            samples=samples,
            releases=np.array(releases, np.int32) if releases else NO_ROWS,
            admissions=tuple(self.admissions),
            blocks=blocks,
            masked_rows=np.array(self._masked_rows, np.int32) if self._masked_rows else NO_ROWS,
            masks=masks,
            given=self._values() if self._gives_values else NO_VALUES,
        )

    def _values(self) -> Int32Array:
        steady, given = self.steady, np.array(self._given, np.int32).reshape(-1, 3)
        if not len(steady.slots):
            return given
        return np.concatenate([np.stack((steady.slots, steady.starts, steady.values), 1), given])

    def _columns(self) -> tuple[Int32Array, Int32Array, Int32Array, NDArray[np.bool_]]:
        """Slots, starts, counts and samples, [R] each."""
        slots, starts = self.steady.slots, self.steady.starts
        counts, samples = _ones(len(slots))
        if not self.rows:
            return slots, starts, counts, samples
        own_slots = np.array([row.request.slot for row in self.rows], np.int32)
        own_starts = np.array([row.start for row in self.rows], np.int32)
        own_counts = np.array([row.num_tokens for row in self.rows], np.int32)
        own_samples = np.array([row.sample for row in self.rows], np.bool_)
        return (
            np.concatenate([slots, own_slots]),
            np.concatenate([starts, own_starts]),
            np.concatenate([counts, own_counts]),
            np.concatenate([samples, own_samples]),
        )


class Pass(Protocol):
    """One part of planning. Passes run in order, each on what those before left of the step."""

    def plan(self, step: Step) -> None: ...


class RowLimit(Protocol):
    """A reason for which a step computes less of a prompt than is left of its budget."""

    def begin_step(self) -> None:
        """Forget what the step before took."""
        ...

    def limit(self, request: Request, behind: int, step: Step) -> int | None:
        """How many of its next `behind` positions the step may compute.

        0: none, nor any of a waiting request that comes after it in order. None: none, but waiting
        requests after it may overtake it.
        """
        ...

    def take(self, request: Request, behind: int, count: int) -> None:
        """The step computes `count` of those positions."""
        ...
