"""A sampler with a slot table of its own, for tests of one or many requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vllm.ops  # noqa: F401  registers the references
from vllm.ops.registry import resolve
from vllm.platforms import platform_of
from vllm.sample.interface import NO_MASK, SamplerOutput, SampleRows
from vllm.sample.sampler import Sampler
from vllm.sample.state import SamplingState
from vllm.sample.static_sampler import StaticSampler
from vllm.sampling_params import SamplingParams

CPU = torch.device("cpu")
DEVICE = platform_of("cpu").device(0)


class Bench:
    def __init__(
        self,
        vocab_size: int,
        num_slots: int = 64,
        max_tokens: int = 64,
        eos_token_ids: Sequence[int] = (),
        logprobs_mode: str = "raw_logprobs",
        overrides: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        static_shapes: bool = False,
    ) -> None:
        ops = resolve(overrides)
        self.vocab_size = vocab_size
        self.state = SamplingState(
            num_slots, vocab_size, max_tokens, DEVICE, ops, eos_token_ids, static_shapes
        )
        sampler = StaticSampler if static_shapes else Sampler
        self.sampler = sampler(ops, vocab_size, CPU, logprobs_mode)
        self.tokens = torch.zeros((num_slots, max_tokens), dtype=torch.int32)
        self.positions_np = np.zeros(num_slots, np.int32)
        self.masks_np = np.full(num_slots, NO_MASK, np.int32)  # by slot: its row of `masks`
        self.masks = np.empty((0, -(-vocab_size // 32)), np.int32)
        self._next_slot = 1

    def add(
        self,
        params: SamplingParams,
        prompt: Sequence[int] = (1, 2, 3),
        output: Sequence[int] = (),
        slot: int | None = None,
    ) -> int:
        """Admit a request and return its slot."""
        if slot is None:
            slot, self._next_slot = self._next_slot, self._next_slot + 1
        known = [*prompt, *output]
        self.tokens[slot, : len(known)] = torch.tensor(known, dtype=torch.int32)
        # What lies behind the known tokens is left over from others and must not matter.
        self.tokens[slot, len(known) :] = self.vocab_size - 1
        self.positions_np[slot] = len(known)
        self.state.admit(slot, params, len(prompt))
        self.state.flush()
        return slot

    def rows(self, slots: Sequence[int]) -> SampleRows:
        slots_np = np.array(slots, np.int32)
        positions_np = self.positions_np[slots_np]
        return SampleRows(
            slots_np,
            positions_np,
            torch.from_numpy,
            self.tokens,
            self.state,
            self.masks_np[slots_np],
            torch.from_numpy(self.masks),
        )

    def sample(self, logits: Tensor, slots: Sequence[int]) -> SamplerOutput:
        """Leaves `logits` as they are, unlike the sampler itself."""
        return self.sampler.sample(logits.clone(), self.rows(slots))
