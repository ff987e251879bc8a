"""Normalisation and rotary embedding."""

from __future__ import annotations

from typing import Final

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor

BLOCKWISE: Final = 0
PAIRWISE: Final = 1
_WIDE: Final = (torch.float32, torch.bfloat16, torch.float16)


def _normalise(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    if x.dtype not in _WIDE or gamma.dtype not in _WIDE:
        raise RuntimeError(f"data_in and gamma are {x.dtype} and {gamma.dtype}, floats are needed")
    if gamma.shape != x.shape[-1:]:
        raise RuntimeError(f"gamma {tuple(gamma.shape)} for data_in {tuple(x.shape)}")
    dtype = x.dtype if x.dtype == gamma.dtype else torch.float32
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return (wide * inverse * gamma.float()).to(dtype), inverse.to(dtype)


@kernel(
    "rms_norm(Tensor data_in, Tensor gamma, float epsilon, int? stages=None, bool fast_math=False)"
    " -> (Tensor, Tensor)"
)
def rms_norm(
    x: Tensor, gamma: Tensor, epsilon: float, stages: int | None = None, fast_math: bool = False
) -> tuple[Tensor, Tensor]:
    """(normalised x, inverse root mean square [..., 1]); float32 where the dtypes differ.

    `stages` and `fast_math` choose among ways to compute the same.
    """
    return _normalise(x, gamma, epsilon)


@kernel("rms_norm_fast(Tensor data_in, Tensor gamma, float epsilon) -> (Tensor, Tensor)")
def rms_norm_fast(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return _normalise(x, gamma, epsilon)


@kernel(
    "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, "
    "int mode) -> Tensor"
)
def rotary_pos_embedding(
    x: Tensor, sin: Tensor, cos: Tensor, position_ids: Tensor | None, offset: int, mode: int
) -> Tensor:
    """x * cos + turned(x) * sin over all of the last dimension; float32 if any input is.

    With position_ids [B, S], x is [B, H, S, D] and the tables have one row per position.
    """
    if mode not in (BLOCKWISE, PAIRWISE):
        raise RuntimeError(f"mode {mode}: {BLOCKWISE} (blockwise) or {PAIRWISE} (pairwise)")
    width = x.shape[-1]
    if width % 2 or cos.shape[-1] != width or sin.shape[-1] != width:
        raise RuntimeError(
            f"cos and sin have {cos.shape[-1]} and {sin.shape[-1]} dimensions, input {width}: "
            "the same, an even number, is needed"
        )
    if position_ids is not None:
        rows = position_ids.long() + offset
        sin, cos = (table.reshape(-1, width)[rows].unsqueeze(1) for table in (sin, cos))
    elif offset:
        sin, cos = (table.narrow(-2, offset, x.shape[-2]) for table in (sin, cos))
    is_wide = torch.float32 in (x.dtype, sin.dtype, cos.dtype)
    dtype = torch.float32 if is_wide else x.dtype
    shape = x.shape
    x, sin, cos = x.to(dtype), sin.to(dtype), cos.to(dtype)
    if mode == BLOCKWISE:
        low, high = x.chunk(2, dim=-1)
        turned = torch.cat((-high, low), dim=-1)
    else:
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    out = x * cos + turned * sin
    if out.shape != shape:
        raise RuntimeError(f"cos and sin widen the input {tuple(shape)} to {tuple(out.shape)}")
    return out
