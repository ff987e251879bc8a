"""PlanBuilder: the step that the scheduler is planning."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm.core.kv_cache.manager import BlockDelta
from vllm.core.request import Request
from vllm.core.steady import SteadyPlan
from vllm.messages.step import NO_MASKS, NO_ROWS, Admission, Int32Array, StepPlan
from vllm.structured_output.grammar import Grammar

_NO_BLOCKS: Final = np.empty((0, 4), np.int32)


class Row(NamedTuple):
    """A planned row, kept until its step commits."""

    request: Request
    start: int
    num_tokens: int
    sample: bool


class PlanBuilder:
    """The step being planned: its rows, deltas, and what is left of its token budget."""

    def __init__(self, budget: int, steady: SteadyPlan) -> None:
        self.budget = budget - len(steady.slots)
        self.steady = steady  # the first rows
        self.rows: list[Row] = []
        self.admissions: list[Admission] = []
        self.block_slots: list[int] = []
        self.blocks: list[BlockDelta] = []
        self.num_partial = 0  # prompts that this and earlier steps leave unfinished
        self.num_long_partial = 0
        self.masked_rows: list[int] = []
        self.grammars: list[Grammar] = []

    def add_blocks(self, slot: int, deltas: list[BlockDelta]) -> None:
        self.block_slots.extend([slot] * len(deltas))
        self.blocks.extend(deltas)

    def add_row(self, request: Request, count: int) -> None:
        start = request.num_planned
        known = request.num_tokens + request.num_pending
        row = Row(request, start, count, sample=start + count == known)
        if row.sample and request.grammar is not None and request.grammar.restricts:
            self.masked_rows.append(len(self.steady.slots) + len(self.rows))
            self.grammars.append(request.grammar)
        self.rows.append(row)
        self.budget -= count
        request.num_inflight += count
        request.num_pending += row.sample

    def build(self, step: int, releases: list[int], mask_words: int) -> StepPlan:
        blocks = _NO_BLOCKS
        if self.blocks:
            blocks = np.empty((len(self.blocks), 4), np.int32)
            blocks[:, 0] = self.block_slots
            blocks[:, 1:] = np.array(self.blocks, np.int32)
        masks = NO_MASKS
        if self.grammars:
            masks = np.empty((len(self.grammars), mask_words), np.int32)
            for mask, grammar in zip(masks, self.grammars, strict=True):
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
            masked_rows=np.array(self.masked_rows, np.int32) if self.masked_rows else NO_ROWS,
            masks=masks,
        )

    def _columns(self) -> tuple[Int32Array, Int32Array, Int32Array, NDArray[np.bool_]]:
        """Slots, starts, counts and samples, [R] each."""
        slots, starts, _ = self.steady
        own_slots = np.array([row.request.slot for row in self.rows], np.int32)
        own_starts = np.array([row.start for row in self.rows], np.int32)
        own_counts = np.array([row.num_tokens for row in self.rows], np.int32)
        own_samples = np.array([row.sample for row in self.rows], np.bool_)
        if not len(slots):
            return own_slots, own_starts, own_counts, own_samples
        counts, samples = np.ones(len(slots), np.int32), np.ones(len(slots), np.bool_)
        if not self.rows:
            return slots, starts, counts, samples
        return (
            np.concatenate([slots, own_slots]),
            np.concatenate([starts, own_starts]),
            np.concatenate([counts, own_counts]),
            np.concatenate([samples, own_samples]),
        )
