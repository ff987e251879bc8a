"""PlanBuilder: the step that the scheduler is planning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm.core.kv_cache.manager import BlockDelta
from vllm.core.plan import Admission, Int32Array, StepPlan
from vllm.core.request import Request
from vllm.core.steady import SteadyPlan
from vllm.structured_output.grammar import Grammar


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
        blocks = np.empty((len(self.blocks), 4), np.int32)
        if self.blocks:
            blocks[:, 0] = self.block_slots
            blocks[:, 1:] = np.array(self.blocks, np.int32)
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
            releases=np.array(releases, np.int32),
            admissions=tuple(self.admissions),
            blocks=blocks,
            masked_rows=np.array(self.masked_rows, np.int32),
            masks=masks,
        )

    def _columns(self) -> tuple[Int32Array, Int32Array, Int32Array, NDArray[np.bool_]]:
        """Slots, starts, counts and samples, [R] each."""
        slots, starts, _ = self.steady
        counts, samples = np.ones(len(slots), np.int32), np.ones(len(slots), np.bool_)
        if not self.rows:
            return slots, starts, counts, samples
        own = [(row.request.slot, row.start, row.num_tokens, row.sample) for row in self.rows]
        table = np.array(own, np.int32)
        if not len(slots):
            return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), table[:, 3] != 0
        return (
            np.concatenate([slots, table[:, 0]]),
            np.concatenate([starts, table[:, 1]]),
            np.concatenate([counts, table[:, 2]]),
            np.concatenate([samples, table[:, 3] != 0]),
        )
