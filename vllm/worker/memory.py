"""What a rank measures of its memory before the KV cache is sized."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FLOAT32_BYTES = 4
# The sampler holds, at its peak, the logits, their processed copy, the noise and the sorted values.
_LOGITS_COPIES = 4


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; those shared by several modules count once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


class PeakTensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Peak bytes of the tensors that ops create while this mode is on.

    Independent of the device's allocator. Scratch memory inside native ops is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if address == 0 or address in known or address in self._alive:
            return

        def gone(_: weakref.ref[Any]) -> None:
            del self._alive[address]
            self._now -= nbytes

        self._alive[address] = weakref.ref(storage, gone)
        self._now += nbytes
        self.peak = max(self.peak, self._now)


def activation_bytes(
    run: Callable[[int], object], num_tokens: int, num_rows: int, vocab_size: int
) -> int:
    """Peak of a step of `num_tokens` tokens that samples `num_rows` rows.

    `run(n)` computes the hidden states of n tokens; two short runs give the bytes per token, so
    that a large model does not have to compute a full step before it can start.
    """
    few, many = 8, min(num_tokens, 136)
    if many <= few:
        few = 1
    peaks = []
    for count in (few, many):
        with PeakTensorBytes() as mode:
            run(count)
        peaks.append(mode.peak)
    per_token = max(0, peaks[1] - peaks[0]) / max(1, many - few)
    forward = peaks[1] + per_token * max(0, num_tokens - many)
    return int(forward) + num_rows * vocab_size * _FLOAT32_BYTES * _LOGITS_COPIES
