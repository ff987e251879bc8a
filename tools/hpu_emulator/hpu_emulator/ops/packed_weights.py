"""Weights of four bits, several to a word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from hpu_emulator.ops.availability import refuse_eager
from hpu_emulator.ops.library import kernel
from torch import Tensor

NIBBLES: Final = 8
# The sixteen quantiles of a normal distribution, scaled to [-1, 1], that NF4 is defined by.
NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_SCHEMA: Final = (
    "(Tensor input, Tensor scale, Tensor? zero_point, ScalarType out_dtype, Tensor? g_idx=None) "
    "-> Tensor"
)


def unpack(words: Tensor, is_signed: bool) -> Tensor:
    """int32 [..., n] -> int32 [..., 8 * n], the lowest four bits first."""
    shifts = torch.arange(0, 4 * NIBBLES, 4, dtype=torch.int32, device=words.device)
    nibbles = ((words.unsqueeze(-1) >> shifts) & 15).flatten(-2)
    return nibbles - ((nibbles & 8) << 1) if is_signed else nibbles


def _of_rows(name: str, table: Tensor, shape: torch.Size, groups: Tensor | None) -> Tensor:
    """The entry of each row, of a table with one per group of rows."""
    if table.dim() < 2 or len(shape) < 2:
        return table
    num_rows, num_groups = shape[-2], table.shape[-2]
    if groups is not None:
        if groups.shape != (num_rows,):
            raise RuntimeError(f"g_idx {tuple(groups.shape)}: one entry per row, ({num_rows},)")
        return table.index_select(-2, groups.long())
    if num_groups in (1, num_rows):
        return table
    if num_groups == 0 or num_rows % num_groups:
        raise RuntimeError(f"{name} has {num_groups} groups, which do not divide {num_rows} rows")
    return table.repeat_interleave(num_rows // num_groups, dim=-2)


def _convert(
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    out_dtype: torch.dtype,
    g_idx: Tensor | None,
    is_signed: bool,
) -> Tensor:
    if words.dtype != torch.int32:
        raise RuntimeError(f"input is {words.dtype}, int32 with eight values per word is needed")
    if words.dim() == 0:
        raise RuntimeError("input has no dimension to unpack")
    if not out_dtype.is_floating_point:
        raise RuntimeError(f"out_dtype {out_dtype}: a floating-point type is needed")
    values = unpack(words, is_signed).float()
    if zero_point is not None:
        if zero_point.dtype == torch.int32:
            zero_point = unpack(zero_point, is_signed)
        elif not zero_point.is_floating_point():
            raise RuntimeError(f"zero_point is {zero_point.dtype}: packed int32, or floating point")
        zeros = _of_rows("zero_point", zero_point, values.shape, g_idx).float()
        values = values - zeros
    scaled = values * _of_rows("scale", scale, values.shape, g_idx).float()
    if scaled.shape != values.shape:
        raise RuntimeError(f"scale and zero_point widen {tuple(values.shape)} values")
    return scaled.to(out_dtype)


def _declare(name: str, is_signed: bool) -> None:
    def infer(
        words: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        out_dtype: torch.dtype,
        g_idx: Tensor | None = None,
    ) -> Tensor:
        return _convert(words, scale, zero_point, out_dtype, g_idx, is_signed)

    def compute(
        words: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        out_dtype: torch.dtype,
        g_idx: Tensor | None = None,
    ) -> Tensor:
        refuse_eager(name)
        return _convert(words, scale, zero_point, out_dtype, g_idx, is_signed)

    declare: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
    declare = kernel(f"{name}{_SCHEMA}", meta=infer)
    declare(compute)


_declare("convert_from_uint4", is_signed=False)
_declare("convert_from_int4", is_signed=True)


def _nf4_shape(
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    out_shape: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(list(out_shape), dtype=out_dtype)


@kernel(
    "dequantize_nf4(Tensor input, Tensor absmax, SymInt blocksize, SymInt[] out_shape, "
    "ScalarType out_dtype) -> Tensor",
    meta=_nf4_shape,
)
def dequantize_nf4(
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    out_shape: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """Bytes hold two values, the first in the high bits; absmax has one scale per block of them."""
    if packed.dtype != torch.uint8:
        raise RuntimeError(f"input is {packed.dtype}, uint8 with two values per byte is needed")
    size = math.prod(out_shape)
    if packed.numel() != (size + 1) // 2:
        raise RuntimeError(f"{packed.numel()} bytes for {size} values of four bits")
    if blocksize <= 0 or absmax.numel() != -(-size // blocksize):
        raise RuntimeError(f"{absmax.numel()} scales for {size} values in blocks of {blocksize}")
    packed = packed.flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[:size]
    values = torch.tensor(NF4)[codes.int()]
    scales = absmax.flatten().float().repeat_interleave(blocksize)[:size]
    return (values * scales).view(list(out_shape)).to(out_dtype)
