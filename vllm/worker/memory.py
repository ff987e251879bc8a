"""What a rank measures of its memory before the KV cache is sized."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from vllm.device.collectives import Collectives
from vllm.messages.facts import WorkerFacts

_FLOAT32_BYTES = 4
# The sampler holds, at its peak, the logits, their processed copy, the noise and the sorted values.
_LOGITS_COPIES = 4
_FEW_TOKENS = 4
# Devices that pad steps may not tell the first of these from few.
_MORE_TOKENS = (12, 136)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; those shared by several modules count once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def poorest(own: WorkerFacts, ranks: Collectives) -> WorkerFacts:
    """What every one of `ranks` has of memory, and none needs more than."""
    return msgspec.structs.replace(
        own,
        weight_bytes=int(ranks.agreed(own.weight_bytes)),
        activation_bytes=int(ranks.agreed(own.activation_bytes)),
        total_bytes=int(ranks.least(own.total_bytes)),
        free_bytes=int(ranks.least(own.free_bytes)),
    )


def activation_bytes(
    peak_of: Callable[[int], tuple[int, int]], num_tokens: int, num_rows: int, vocab_size: int
) -> int:
    """Peak of a step of `num_tokens` tokens that samples `num_rows` rows.

    `peak_of(n)` computes the hidden states of about n tokens; it returns how many they were, and
    the peak. Two short runs give the bytes per token, so that a large model does not have to
    compute a full step before it can start.
    """
    few, peak_of_few = many, peak = peak_of(min(num_tokens, _FEW_TOKENS))
    for wanted in _MORE_TOKENS:
        if many <= few:
            many, peak = peak_of(min(num_tokens, wanted))
    if many <= few:
        few, peak_of_few = peak_of(1)
    per_token = max(0, peak - peak_of_few) / max(1, many - few)
    forward = peak + per_token * max(0, num_tokens - many)
    return int(forward) + num_rows * vocab_size * _FLOAT32_BYTES * _LOGITS_COPIES
