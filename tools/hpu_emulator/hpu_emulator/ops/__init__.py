"""Kernels of the device in torch.ops.hpu; importing registers them."""

from hpu_emulator.ops import (
    attention,
    block_softmax,
    causal_conv,
    experts,
    experts_fp8,
    fast_math,
    fp8_attention,
    fp8_casts,
    fp8_products,
    layers,
    packed_weights,
    retired,
)

__all__ = [
    "attention",
    "block_softmax",
    "causal_conv",
    "experts",
    "experts_fp8",
    "fast_math",
    "fp8_attention",
    "fp8_casts",
    "fp8_products",
    "layers",
    "packed_weights",
    "retired",
]
