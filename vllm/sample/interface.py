"""What the runner hands to the sampler, and gets back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from vllm.sample.state import SamplingState

NO_MASK: Final = -1


class SampleRows(NamedTuple):
    """S rows that draw a token. Host arrays choose the work, device tensors do it."""

    slots_np: np.ndarray  # [S] int32
    positions_np: np.ndarray  # [S] int32: position the drawn token will take; = tokens known so far
    slots: Tensor  # [S] int32 on the device
    positions: Tensor  # [S] int32 on the device
    tokens: Tensor  # [num_slots, max_tokens] int32: the slot table's token rows
    state: SamplingState  # parameters per slot
    masks_np: np.ndarray  # [S] int32: row of `masks` that applies; NO_MASK: none
    masks: Tensor  # [G, ceil(V / 32)] int32 on the device: a bit per token that may be drawn

    def at(self, index_np: np.ndarray, index: Tensor) -> SampleRows:
        """The rows `index_np` int64; `index` is the same on the device."""
        return SampleRows(
            self.slots_np[index_np],
            self.positions_np[index_np],
            self.slots.index_select(0, index),
            self.positions.index_select(0, index),
            self.tokens,
            self.state,
            self.masks_np[index_np],
            self.masks,
        )


class LogprobTensors(NamedTuple):
    """Device twin of core.plan.LogprobArrays."""

    token_ids: Tensor  # [L, 1 + k] int32
    logprobs: Tensor  # [L, 1 + k] float32
    ranks: Tensor  # [L] int32


class SamplerOutput(NamedTuple):
    token_ids: Tensor  # [S] int32
    logprobs: LogprobTensors | None
