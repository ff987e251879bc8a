"""Sampling parameters of every slot, on the device, and what they make a launch do."""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vllm.messages.step import Int32Array
from vllm.ops.registry import Ops
from vllm.ops.sampling import DrawTables
from vllm.sample.processors import HostProcessor
from vllm.sample.ragged import SlotLists, SlotWords
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from vllm.device.device import Device

NO_LOGPROBS = -1


class Want(enum.IntFlag):
    """What the request in a slot needs done. No flag: its most likely token, and nothing else."""

    ALLOWED_TOKENS = enum.auto()
    BAD_WORDS = enum.auto()
    MIN_TOKENS = enum.auto()
    LOGIT_BIAS = enum.auto()
    PENALTIES = enum.auto()
    PROCESSORS = enum.auto()
    GRAMMAR = enum.auto()
    TEMPERATURE = enum.auto()
    MIN_P = enum.auto()
    TOP_K_TOP_P = enum.auto()
    DRAW = enum.auto()
    LOGPROBS = enum.auto()


class _Integer(enum.IntEnum):  # columns
    NUM_PROMPT_TOKENS = 0
    TOP_K = 1
    SEED = 2  # low word, then high word


class _Real(enum.IntEnum):
    TEMPERATURE = 0
    LOG_MIN_P = 1
    TOP_P = 2
    PRESENCE = 3
    FREQUENCY = 4
    REPETITION = 5


class SlotNumbers:
    """Numbers of every slot, [num_slots, W]: a host array and the device tensor that follows."""

    def __init__(self, initial: np.ndarray, device: Device) -> None:
        self.host = initial
        self.tensor = torch.from_numpy(initial).to(device.torch_device, copy=True)
        self._device = device

    def column(self, index: int) -> Tensor:
        """[num_slots], a view."""
        return self.tensor[:, index]

    def follow(self, slots: Int32Array) -> None:
        """Bring the device up to date with the host's rows of `slots`."""
        self._device.put(self.tensor, slots, self.host[slots])


class SamplingState:
    """One entry per slot, written once, when a request is admitted; owned by the slot table.

    Host arrays (`*_np`) choose which stages run on which rows; device tensors are what they compute
    with, and know of an admission after `flush`. A slot that was never admitted, or was released,
    takes the most likely token.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        max_tokens: int,
        device: Device,
        ops: Ops,
        eos_token_ids: Iterable[int] = (),
        static_shapes: bool = False,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        self.ops = ops
        self.static_shapes = static_shapes  # nothing may depend on what rows want, or on values
        # Some configurations name an end token that the model's head does not have.
        self.eos_token_ids = frozenset(t for t in eos_token_ids if 0 <= t < vocab_size)
        self.wants_np = np.zeros(num_slots, np.int32)  # of Want
        self.num_prompt_tokens_np = np.zeros(num_slots, np.int32)
        self.min_tokens_np = np.zeros(num_slots, np.int32)
        self.top_k_np = np.full(num_slots, vocab_size, np.int32)  # vocab_size: off
        self.top_p_np = np.ones(num_slots, np.float32)
        self.num_logprobs_np = np.full(num_slots, NO_LOGPROBS, np.int32)
        self.processors: dict[int, list[HostProcessor]] = {}
        self.failures: dict[int, str] = {}  # by slot, until `take_failures`
        self._admitted: set[int] = set()  # slots whose numbers the device does not know yet
        # Any numbers that a stage can compute with: some devices run one on all rows of a launch.
        self._integers = SlotNumbers(np.ones((num_slots, 4), np.int32), device)
        self.num_prompt_tokens = self._integers.column(_Integer.NUM_PROMPT_TOKENS)
        self.top_k = self._integers.column(_Integer.TOP_K)  # vocab_size: off
        self.seeds = self._integers.tensor[:, _Integer.SEED :]
        self._reals = SlotNumbers(np.ones((num_slots, len(_Real)), np.float32), device)
        self.temperature = self._reals.column(_Real.TEMPERATURE)
        self.log_min_p = self._reals.column(_Real.LOG_MIN_P)
        self.top_p = self._reals.column(_Real.TOP_P)
        self.presence_penalty = self._reals.column(_Real.PRESENCE)
        self.frequency_penalty = self._reals.column(_Real.FREQUENCY)
        self.repetition_penalty = self._reals.column(_Real.REPETITION)
        self.draw_tables = DrawTables(
            self.temperature, self.log_min_p, self.top_k, self.top_p, self.seeds
        )
        self.allowed_ids = SlotLists(num_slots, device, torch.int32)
        self.stop_ids = SlotLists(num_slots, device, torch.int32)
        self.bias_ids = SlotLists(num_slots, device, torch.int32)
        self.bias_values = SlotLists(num_slots, device, torch.float32)
        self.bad_words = SlotWords(num_slots, device)

    def admit(self, slot: int, params: SamplingParams, num_prompt_tokens: int) -> None:
        """Give `slot` to a request. Its seed must be set, unless it is greedy."""
        assert 0 < num_prompt_tokens <= self.max_tokens, (slot, num_prompt_tokens)
        self.release(slot)
        self.num_prompt_tokens_np[slot] = num_prompt_tokens
        wants = self._admit_lists(slot, params)
        wants |= self._admit_penalties(slot, params)
        wants |= self._admit_draw(slot, params)
        if params.logprobs is not None:
            wants |= Want.LOGPROBS
            k = params.logprobs
            self.num_logprobs_np[slot] = self.vocab_size if k == -1 else min(k, self.vocab_size)
        self.wants_np[slot] = wants
        self._admitted.add(slot)

    def flush(self) -> None:
        """Tell the device what admissions have changed."""
        if self._admitted:
            slots = np.fromiter(self._admitted, np.int32, len(self._admitted))
            self._admitted.clear()
            self.follow(slots)

    def follow(self, slots: Int32Array) -> None:
        """Bring the device up to date with the numbers of these slots."""
        self._integers.follow(slots)
        self._reals.follow(slots)

    @contextmanager
    def pretend(self, slot: int, wants: Want) -> Iterator[None]:
        """While this is open, `slot`, which nobody has, wants this; for warm-up."""
        self.wants_np[slot] = wants
        self.num_logprobs_np[slot] = 0
        try:
            yield
        finally:
            self.release(slot)

    def take_failures(self) -> dict[int, str]:
        """Why requests cannot go on, by slot; those since the last call."""
        failures, self.failures = self.failures, {}
        return failures

    def release(self, slot: int) -> None:
        self.wants_np[slot] = 0
        self.num_logprobs_np[slot] = NO_LOGPROBS
        self.processors.pop(slot, None)

    def _admit_lists(self, slot: int, params: SamplingParams) -> Want:
        wants = Want(0)
        if params.allowed_token_ids:
            self.allowed_ids.put(slot, params.allowed_token_ids)
            wants |= Want.ALLOWED_TOKENS
        words = [word for word in params.bad_words_token_ids or () if word]
        if words:
            self.bad_words.put(slot, words)
            wants |= Want.BAD_WORDS
        stops = params.ending_token_ids(self.eos_token_ids)
        if params.min_tokens > 0 and stops:
            self.min_tokens_np[slot] = params.min_tokens
            self.stop_ids.put(slot, sorted(stops))
            wants |= Want.MIN_TOKENS
        if params.logit_bias:
            # The list's padding repeats the first entry, and biases add up: keep that one neutral.
            self.bias_ids.put(slot, [0, *params.logit_bias])
            self.bias_values.put(slot, [0.0, *params.logit_bias.values()])
            wants |= Want.LOGIT_BIAS
        if params.logits_processors:
            self.processors[slot] = [HostProcessor(p) for p in params.logits_processors]
            wants |= Want.PROCESSORS
        if params.structured_outputs is not None:
            wants |= Want.GRAMMAR
        return wants

    def _admit_penalties(self, slot: int, params: SamplingParams) -> Want:
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        if penalties == (0.0, 0.0, 1.0):
            return Want(0)
        self._reals.host[slot, _Real.PRESENCE :] = penalties
        return Want.PENALTIES

    def _admit_draw(self, slot: int, params: SamplingParams) -> Want:
        top_k = params.top_k if 0 < params.top_k < self.vocab_size else self.vocab_size
        self.top_k_np[slot] = top_k
        self.top_p_np[slot] = params.top_p
        prompt = int(self.num_prompt_tokens_np[slot])
        self._integers.host[slot] = (prompt, top_k, *_words(params.seed or 0))
        if params.is_greedy:
            return Want(0)
        assert params.seed is not None, "the front end resolves seeds"
        draw = (
            params.temperature,
            math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
            params.top_p,
        )
        self._reals.host[slot, : _Real.PRESENCE] = draw
        wants = Want.DRAW
        if params.temperature != 1.0:
            wants |= Want.TEMPERATURE
        if params.min_p > 0.0:
            wants |= Want.MIN_P
        if top_k < self.vocab_size or params.top_p < 1.0:
            wants |= Want.TOP_K_TOP_P
        return wants


def _words(seed: int) -> tuple[int, int]:
    """Low and high half of a 64-bit seed, as int32."""
    low, high = struct.unpack("<ii", struct.pack("<q", seed))
    return low, high
