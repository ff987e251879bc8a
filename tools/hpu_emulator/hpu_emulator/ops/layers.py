"""Normalisation and rotary embedding."""

from __future__ import annotations

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor

BLOCKWISE, PAIRWISE = 0, 1


@kernel(
    "rms_norm(Tensor data_in, Tensor gamma, float epsilon, int? stages=None, bool fast_math=False)"
    " -> (Tensor, Tensor)"
)
def rms_norm(
    x: Tensor, gamma: Tensor, epsilon: float, stages: int | None = None, fast_math: bool = False
) -> tuple[Tensor, Tensor]:
    """(normalised x, inverse root mean square [..., 1]); float32 where the dtypes differ."""
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    out = wide * inverse * gamma.float()
    return out.to(x.dtype) if x.dtype == gamma.dtype else out, inverse


@kernel(
    "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, "
    "int mode) -> Tensor"
)
def rotary_pos_embedding(
    x: Tensor, sin: Tensor, cos: Tensor, position_ids: Tensor | None, offset: int, mode: int
) -> Tensor:
    """x * cos + turned(x) * sin over all of the last dimension; float32 if any input is."""
    if mode not in (BLOCKWISE, PAIRWISE):
        raise RuntimeError(f"mode {mode}: {BLOCKWISE} (blockwise) or {PAIRWISE} (pairwise)")
    if position_ids is not None:
        sin, cos = (table.squeeze()[position_ids + offset].unsqueeze(1) for table in (sin, cos))
    elif offset:
        sin, cos = (table[..., offset : offset + x.shape[-2], :] for table in (sin, cos))
    if cos.shape[-1] != x.shape[-1] or sin.shape[-1] != x.shape[-1]:
        raise RuntimeError(
            f"cos and sin have {cos.shape[-1]} and {sin.shape[-1]} dimensions, input {x.shape[-1]}"
        )
    is_wide = torch.float32 in (x.dtype, sin.dtype, cos.dtype)
    dtype = torch.float32 if is_wide else x.dtype
    x, sin, cos = x.to(dtype), sin.to(dtype), cos.to(dtype)
    if mode == BLOCKWISE:
        low, high = x.chunk(2, dim=-1)
        turned = torch.cat((-high, low), dim=-1)
    else:
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin
