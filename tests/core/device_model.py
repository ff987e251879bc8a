"""A model of the device: executes plans on symbolic keys and values, and checks every read.

A cache entry holds the prefix it was computed from, so a row that reads a block which was freed,
reused or shared wrongly is caught at the position where it happens. With several stages, the first
one knows a drawn token only once a plan has brought it. A draw gives up to `most_tokens` tokens.
"""

from __future__ import annotations

import zlib

import numpy as np

from vllm.messages.cache import KVCacheLayout
from vllm.messages.step import NO_TOKEN, StepPlan, StepResult

VOCAB = 50
BROKEN = 666  # seed of a request whose every draw fails


def next_token(prefix: tuple[int, ...], seed: int) -> int:
    """The model's "weights": a fixed function of everything before."""
    return zlib.crc32(np.array((seed, *prefix), np.int32).tobytes()) % VOCAB


class DeviceModel:
    """Executes plans in the order they are submitted, as a rank does."""

    def __init__(self, layout: KVCacheLayout, num_stages: int = 1, most_tokens: int = 1) -> None:
        self.num_stages = num_stages
        self.most_tokens = most_tokens
        self.known: dict[int, list[int]] = {}  # by slot: what the first of several stages knows
        self.block_size = layout.groups[0].needs.block_size if layout.groups else 0
        self.windows = [group.needs.window for group in layout.groups]
        self.caches: list[dict[int, tuple[int, ...]]] = [{} for _ in layout.groups]
        self.tokens: dict[int, list[int]] = {}
        self.seeds: dict[int, int] = {}
        self.tables: dict[int, list[dict[int, int]]] = {}
        self.last_step = 0

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.step == self.last_step + 1
        self.last_step = plan.step
        for slot in plan.releases.tolist():
            del self.tokens[slot], self.tables[slot], self.seeds[slot]
        for admission in plan.admissions:
            assert admission.slot not in self.tokens, "slot is taken"
            self.tokens[admission.slot] = admission.token_ids.tolist()
            self.tables[admission.slot] = [{} for _ in self.caches]
            self.seeds[admission.slot] = admission.params.seed or 0
            self.known[admission.slot] = admission.token_ids.tolist()
        for slot, position, token_id in plan.given.tolist():
            assert position == len(self.known[slot]), "given twice, or not in order"
            self.known[slot].append(token_id)
        for slot, group, index, block in plan.blocks.tolist():
            assert block != 0
            self.tables[slot][group][index] = block
        rows = zip(plan.slots.tolist(), plan.starts.tolist(), plan.counts.tolist(), strict=True)
        for slot, start, count in rows:
            if self.num_stages > 1:
                first = self.known[slot][: start + count]
                assert first == self.tokens[slot][: start + count], "stages know different tokens"
            for position in range(start, start + count):
                self._compute(slot, position)
        drawn = []
        counts = []
        for slot, start, count, sample in zip(
            plan.slots.tolist(),
            plan.starts.tolist(),
            plan.counts.tolist(),
            plan.samples,
            strict=True,
        ):
            if sample:
                row = self.tokens[slot]
                assert len(row) == start + count, "a draw must follow all known tokens"
                seed = self.seeds[slot]
                counts.append(1 + row[-1] % self.most_tokens)
                for _ in range(counts[-1]):
                    row.append(NO_TOKEN if seed == BROKEN else next_token(tuple(row), seed))
                    drawn.append(row[-1])
        token_ids = np.array(drawn, np.int32)
        if self.most_tokens == 1:
            return StepResult(plan.step, token_ids)
        return StepResult(plan.step, token_ids, counts=np.array(counts, np.int32))

    def _compute(self, slot: int, position: int) -> None:
        row = self.tokens[slot]
        for group, window in enumerate(self.windows):
            first = 0 if window is None else max(0, position - window + 1)
            for seen in range(first, position):
                entry = self.caches[group].get(self._entry(slot, group, seen))
                assert entry == tuple(row[: seen + 1]), f"position {position} read a wrong {seen}"
        for group in range(len(self.windows)):
            self.caches[group][self._entry(slot, group, position)] = tuple(row[: position + 1])
            # A block belongs to one group at a time: what another group had there is overwritten.
            for other in range(len(self.windows)):
                if other != group:
                    self.caches[other].pop(self._entry(slot, group, position), None)

    def _entry(self, slot: int, group: int, position: int) -> int:
        block = self.tables[slot][group][position // self.block_size]
        return block * self.block_size + position % self.block_size
