"""Casts to and from fp8, and the scales of such casts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from hpu_emulator.ops.fp8 import (
    E4M3,
    E5M2,
    FP8,
    Scale,
    apply_scale,
    check_fp8,
    decode,
    encode,
    fullscale,
    scale_tensor,
)
from hpu_emulator.ops.library import kernel
from torch import Tensor

# How each overload takes a scale.
_SCALES: Final = {
    "": "Tensor? scale=None",
    ".scalar": "float scale",
    ".scalar_list": "float[] scale",
}
NO_MAX, MAX_OF_TENSOR, MAX_OF_CHANNEL = range(3)
NO_ROUNDING, POWER_OF_TWO = range(2)


def _check_wide(tensor: Tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise RuntimeError(f"input is {tensor.dtype}: float32, bfloat16 or float16 is needed")


def _amax(tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.float32, device=tensor.device)
    return tensor.abs().amax().float()


def cast_to_fp8_v2(
    tensor: Tensor,
    scale: Scale = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
    dtype: torch.dtype | None = None,
    scale_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(fp8 of input * scale, largest magnitude of the input if asked for, else empty)."""
    if dtype is None:
        raise RuntimeError(
            "cast_to_fp8_v2 without dtype gives the int8 container of early releases, which is not "
            "emulated: pass dtype=torch.float8_e4m3fn"
        )
    check_fp8("dtype", dtype)
    if tensor.dtype in FP8:
        if tensor.dtype != dtype or is_amax:
            raise RuntimeError(f"an input in {tensor.dtype} is cast to no other type, without amax")
        wide = decode(tensor)
    else:
        _check_wide(tensor)
        wide = tensor.float()
    factor = scale_tensor(scale, tensor, scale_shape)
    out = encode(apply_scale(wide, factor), dtype, stochastic_rounding)
    empty = torch.empty(0, dtype=torch.float32, device=tensor.device)
    return out, _amax(tensor) if is_amax else empty


def cast_from_fp8(
    tensor: Tensor, scale: Scale, out_dtype: torch.dtype, scale_shape: Sequence[int] | None = None
) -> Tensor:
    """input * scale in out_dtype."""
    check_fp8("input", tensor.dtype)
    if out_dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise RuntimeError(f"out_dtype {out_dtype}: float32, bfloat16 or float16 is needed")
    factor = scale_tensor(scale, tensor, scale_shape)
    return apply_scale(decode(tensor), factor).to(out_dtype)


def _declare(schema: str, function: Callable[..., object]) -> None:
    kernel(schema)(function)


for _overload, _scale in _SCALES.items():
    _declare(
        f"cast_to_fp8_v2{_overload}(Tensor input, {_scale}, bool stochastic_rounding=False, "
        "bool is_amax=False, ScalarType? dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)",
        cast_to_fp8_v2,
    )
    _declare(
        f"cast_from_fp8{_overload}(Tensor input, {_scale.removesuffix('=None')}, "
        "ScalarType out_dtype, int[]? scale_shape=None) -> Tensor",
        cast_from_fp8,
    )


@kernel(
    "cast_to_fp8_hybrid(Tensor input, Tensor? scale_152=None, Tensor? scale_143=None, "
    "bool stochastic_rounding=False, bool is_amax=False) -> (Tensor, Tensor, Tensor)"
)
def cast_to_fp8_hybrid(
    tensor: Tensor,
    scale_152: Tensor | None = None,
    scale_143: Tensor | None = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(e5m2, e4m3, amax) of one input."""
    wide, amax = cast_to_fp8_v2(tensor, scale_152, stochastic_rounding, is_amax, E5M2)
    narrow, _ = cast_to_fp8_v2(tensor, scale_143, stochastic_rounding, False, E4M3)
    return wide, narrow, amax


@kernel(
    "cast_to_fp8_just_in_time(Tensor input, int[] block_size, ScalarType out_dtype=float8_e4m3fn, "
    "ScalarType? scale_dtype=None) -> (Tensor, Tensor)"
)
def cast_to_fp8_just_in_time(
    tensor: Tensor,
    block_size: Sequence[int],
    out_dtype: torch.dtype = E4M3,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Blocks of [height, width] of the last two dimensions, each with a scale of its own.

    The scales [..., H / height, W / width] give back what was cast: fp8 * scale.
    """
    _check_wide(tensor)
    check_fp8("out_dtype", out_dtype)
    if tensor.dim() < 2 or len(block_size) != 2:
        raise RuntimeError("cast_to_fp8_just_in_time needs two dimensions and two block sizes")
    height, width = block_size
    rows, columns = tensor.shape[-2:]
    if 1 not in (height, width) and height != width:
        raise RuntimeError(f"blocks of {height} x {width}: one size is 1, or both are equal")
    if min(height, width) < 1 or rows % height or columns % width:
        raise RuntimeError(f"{rows} x {columns} is no multiple of blocks of {height} x {width}")
    grid = (*tensor.shape[:-2], rows // height, height, columns // width, width)
    blocks = tensor.float().reshape(grid)
    # Blocks of zeros have a scale that does no harm.
    scale = (blocks.abs().amax(dim=(-3, -1), keepdim=True) / fullscale(out_dtype)).clamp(min=1e-12)
    scale = scale.to(scale_dtype or tensor.dtype)
    out = encode(blocks / scale.float(), out_dtype).reshape(tensor.shape)
    return out, scale.squeeze(-1).squeeze(-2)


@kernel(
    "calculate_scale_for_cast(Tensor input, int maxMode, int scaleMode, int reduceAxis=-1, "
    "bool reduceKeepdim=False, float fullscale=1.0, float backoff=1.0) -> Tensor"
)
def calculate_scale_for_cast(
    tensor: Tensor,
    max_mode: int,
    scale_mode: int,
    axis: int = -1,
    keepdim: bool = False,
    full: float = 1.0,
    backoff: float = 1.0,
) -> Tensor:
    """Largest magnitude over `full * backoff`; the input itself where no maximum is asked for."""
    _check_wide(tensor)
    if max_mode not in (NO_MAX, MAX_OF_TENSOR, MAX_OF_CHANNEL):
        raise RuntimeError(f"maxMode {max_mode}: 0 (none), 1 (tensor) or 2 (channel)")
    if scale_mode not in (NO_ROUNDING, POWER_OF_TWO):
        raise RuntimeError(f"scaleMode {scale_mode}: 0 (none) or 1 (power of two)")
    # A result never shares memory with the input.
    scale = tensor.to(torch.float32, copy=True)
    if max_mode == MAX_OF_TENSOR:
        scale = scale.abs().amax() / (full * backoff)
    elif max_mode == MAX_OF_CHANNEL:
        scale = scale.abs().amax(dim=axis, keepdim=keepdim) / (full * backoff)
    if scale_mode == POWER_OF_TWO:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    return scale.to(tensor.dtype)
