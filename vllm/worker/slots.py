"""Slots: what the device knows of every running request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.device.attention import GroupTables
from vllm.device.device import Device
from vllm.device.placement import Placement
from vllm.messages.cache import BlockNeeds
from vllm.messages.step import Admission, Int32Array, StepPlan
from vllm.sample.state import SamplingState

DUMMY_SLOT = 0  # padding and warm-up rows; its block table names the dummy block only

_NOT_WANTED = -1


@dataclass(frozen=True, slots=True)
class SlotsShape:
    """Sizes that do not change while the engine runs."""

    max_num_seqs: int
    max_model_len: int
    pipeline_depth: int
    vocab_size: int
    kv_groups: tuple[BlockNeeds, ...]

    @property
    def num_slots(self) -> int:
        return self.max_num_seqs + 1

    @property
    def max_tokens(self) -> int:
        """Columns of the token table: steps in flight may draw past the end of a request."""
        return self.max_model_len + self.pipeline_depth + 1


class Slots:
    """Device truth of running requests, one slot each; owned by the runner.

    Changed by `apply` (deltas of a plan) and by `write_drawn` (sampled tokens) and by nothing else.
    Both are queued: a token that a plan gives replaces what earlier steps draw at its position.
    """

    def __init__(
        self,
        shape: SlotsShape,
        device: Device,
        sampling: SamplingState,
        placement: Placement | None = None,
    ) -> None:
        """`placement`: by default blocks lie where their numbers say."""
        self.shape = shape
        self.placement = placement or Placement()
        self.device = device
        self.sampling = sampling
        num_slots, max_tokens = shape.num_slots, shape.max_tokens
        self.tokens = torch.zeros(
            (num_slots, max_tokens), dtype=torch.int32, device=device.torch_device
        )
        self._flat_tokens = self.tokens.view(-1)
        # By KV group; to read only. Attention takes from them what a launch needs, so the device
        # has no twin.
        self.tables = tuple(
            GroupTables(
                np.zeros((num_slots, needs.max_blocks(max_tokens)), np.int32),
                needs.block_size,
                needs.window,
            )
            for needs in shape.kv_groups
        )
        self.num_prompt_tokens_np = np.zeros(num_slots, np.int32)
        self.prompt_logprobs_np = np.full(num_slots, _NOT_WANTED, np.int32)  # k, per slot

    def apply(self, plan: StepPlan) -> None:
        """Releases, admissions, given tokens and block deltas; a plan's rows change nothing here.

        `plan.given` names no position twice.
        """
        for slot in plan.releases.tolist():
            self._release(slot)
        if plan.admissions:
            for admission in plan.admissions:
                self._admit(admission)
            self._put_tokens(plan.admissions)
            self.sampling.flush()
            self.device.step_boundary()
        if len(plan.given):
            self._put_given(plan.given)
            self.device.step_boundary()
        if len(plan.blocks):
            self._put_blocks(plan.blocks)
        if len(plan.blocks) or len(plan.releases):
            self.placement.tidy()

    def _release(self, slot: int) -> None:
        self.sampling.release(slot)
        self.placement.release(slot)
        self.prompt_logprobs_np[slot] = _NOT_WANTED

    def _admit(self, admission: Admission) -> None:
        slot, params, token_ids = admission.slot, admission.params, admission.token_ids
        assert DUMMY_SLOT < slot < self.shape.num_slots, slot
        assert 0 < len(token_ids) <= self.shape.max_tokens, (admission.request_id, len(token_ids))
        self.num_prompt_tokens_np[slot] = admission.num_prompt_tokens
        k = params.prompt_logprobs
        if k is not None:
            self.prompt_logprobs_np[slot] = k if k >= 0 else self.shape.vocab_size
        self.sampling.admit(slot, params, admission.num_prompt_tokens)

    def _put_tokens(self, admissions: Sequence[Admission]) -> None:
        width = self.shape.max_tokens
        index = [np.arange(len(a.token_ids)) + a.slot * width for a in admissions]
        token_ids = [a.token_ids for a in admissions]
        if len(admissions) > 1:
            index, token_ids = [np.concatenate(index)], [np.concatenate(token_ids)]
        self.device.put(self._flat_tokens, index[0], token_ids[0])

    def _put_given(self, given: Int32Array) -> None:
        slots, positions, token_ids = given.T
        assert ((slots > DUMMY_SLOT) & (slots < self.shape.num_slots)).all(), slots
        assert ((positions >= 0) & (positions < self.shape.max_tokens)).all(), positions
        index = slots * np.int64(self.shape.max_tokens) + positions
        self.device.put(self._flat_tokens, index, token_ids)

    def rehearse_puts(self, num_rows: int) -> None:
        """Write this many rows of what plans write, to the dummy slot; for warm-up."""
        index = np.full(num_rows, DUMMY_SLOT, np.int32)
        self.device.put(self._flat_tokens, index, np.zeros(num_rows, np.int32))
        self.sampling.follow(index)

    def _put_blocks(self, blocks: Int32Array) -> None:
        if len(self.tables) == 1:
            places = self.placement.place(blocks[:, 3])
            self.tables[0].blocks_np[blocks[:, 0], blocks[:, 2]] = places
            return
        for group, table in enumerate(self.tables):
            slots, _, columns, block_ids = blocks[blocks[:, 1] == group].T
            table.blocks_np[slots, columns] = self.placement.place(block_ids)

    def flat_index(self, slots: Int32Array, positions: Int32Array) -> Tensor:
        """Where the tokens at (slot, position) lie in the flattened token table: int64 [T]."""
        index = slots * np.int64(self.shape.max_tokens) + positions
        return self.device.upload(index)

    def read(self, index: Tensor) -> Tensor:
        """Token ids at `flat_index` entries: int32 [T]. Sees tokens of steps still in flight."""
        return self._flat_tokens.index_select(0, index)

    def write_drawn(self, slots: Int32Array, positions: Int32Array, token_ids: Tensor) -> None:
        """Put freshly drawn token_ids, int32 [S], at (slots, positions).

        A row that drew NO_TOKEN has failed; until that is committed, steps read some token there.
        """
        tokens = token_ids.clamp(min=0)
        self._flat_tokens.index_copy_(0, self.flat_index(slots, positions), tokens)

    def wants_prompt_logprobs(self, slots: Int32Array) -> np.ndarray:
        """[R] bool: rows whose request asked for prompt log-probabilities."""
        wanted: np.ndarray = self.prompt_logprobs_np[slots] != _NOT_WANTED
        return wanted
