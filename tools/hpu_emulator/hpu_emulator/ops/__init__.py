"""Kernels of the device in torch.ops.hpu; importing registers them."""

from hpu_emulator.ops import (
    attention,
    block_softmax,
    causal_conv,
    experts,
    layers,
    packed_weights,
    retired,
)

__all__ = [
    "attention",
    "block_softmax",
    "causal_conv",
    "experts",
    "layers",
    "packed_weights",
    "retired",
]
