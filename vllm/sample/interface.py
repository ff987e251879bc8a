"""What the runner hands to the sampler, and gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from torch import Tensor

from vllm.messages.step import Int32Array

if TYPE_CHECKING:
    from vllm.sample.state import SamplingState

NO_MASK: Final = -1


@dataclass(frozen=True)
class SampleRows:
    """S rows that draw a token. Host arrays choose the work, device tensors do it."""

    slots_np: Int32Array  # [S]
    positions_np: Int32Array  # [S] position the drawn token will take; = tokens known so far
    upload: Callable[[Int32Array], Tensor]  # Device.upload
    tokens: Tensor  # [num_slots, max_tokens] int32: the slot table's token rows
    state: SamplingState  # parameters per slot
    masks_np: Int32Array  # [S] row of `masks` that applies; NO_MASK: none
    masks: Tensor  # [G, ceil(V / 32)] int32 on the device: a bit per token that may be drawn

    # Cached, and not fields: the most likely tokens are found without them.

    @cached_property
    def slots(self) -> Tensor:
        """[S] int32 on the device"""
        return self.upload(self.slots_np)

    @cached_property
    def positions(self) -> Tensor:
        """[S] int32 on the device"""
        return self.upload(self.positions_np)

    def at(self, index_np: np.ndarray) -> SampleRows:
        """The rows `index_np` int64."""
        return replace(
            self,
            slots_np=self.slots_np[index_np],
            positions_np=self.positions_np[index_np],
            masks_np=self.masks_np[index_np],
        )


class LogprobTensors(NamedTuple):
    """Device twin of messages.step.LogprobArrays."""

    token_ids: Tensor  # [L, 1 + k] int32
    logprobs: Tensor  # [L, 1 + k] float32
    ranks: Tensor  # [L] int32


class SamplerOutput(NamedTuple):
    token_ids: Tensor  # [S] int32
    logprobs: LogprobTensors | None
