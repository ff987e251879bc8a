"""Products, convolutions, sums and softmax of fp8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from hpu_emulator.ops.fp8 import (
    E4M3,
    FP8,
    Scale,
    apply_scale,
    check_fp8,
    decode,
    encode,
    scale_tensor,
    widen,
)
from hpu_emulator.ops.library import kernel
from torch import Tensor

_OUT = (torch.float32, torch.bfloat16, torch.float16)


def _out_dtype(dtype: torch.dtype | None, default: torch.dtype = torch.bfloat16) -> torch.dtype:
    dtype = dtype or default
    if dtype not in _OUT:
        raise RuntimeError(f"out_dtype {dtype}: float32, bfloat16 or float16 is needed")
    return dtype


def _of_blocks(name: str, scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale per block of the last two dimensions, repeated to the shape of what it scales."""
    if scale.dim() < 2:
        raise RuntimeError(f"{name} {tuple(scale.shape)} does not fit {tuple(shape)}")
    for dim in (-2, -1):
        if scale.shape[dim] == 0 or shape[dim] % scale.shape[dim]:
            raise RuntimeError(f"{name} {tuple(scale.shape)} does not divide {tuple(shape)}")
        if scale.shape[dim] != 1:
            scale = scale.repeat_interleave(shape[dim] // scale.shape[dim], dim=dim)
    return scale


def fp8_gemm_v2(
    a: Tensor,
    trans_a: bool,
    b: Tensor,
    trans_b: bool,
    d: Tensor | None,
    out_dtype: torch.dtype,
    a_scale_inv: Scale = None,
    b_scale_inv: Scale = None,
    bias: Tensor | None = None,
    accumulate: bool = False,
    b_scale_shape: Sequence[int] | None = None,
) -> Tensor:
    """op(A) op(B) with the scales, plus bias, plus D where it accumulates.

    A's scale is one, [M, 1], or one per block [M or 1, K / width]; B's is one, [N], or one per
    block [K / height, N / width]: in the orientation in which the operands are multiplied.
    """
    check_fp8("A", a.dtype)
    check_fp8("B", b.dtype)
    out_dtype = _out_dtype(out_dtype)
    if a.dim() < 2 or b.dim() < 2:
        raise RuntimeError(f"A and B have {a.dim()} and {b.dim()} dimensions, two are needed")
    if accumulate and d is None:
        raise RuntimeError("accumulate needs D")
    left, right = decode(a), decode(b)
    left = left.mT if trans_a else left
    right = right.mT if trans_b else right
    a_scale, b_scale = scale_tensor(a_scale_inv, a), scale_tensor(b_scale_inv, b, b_scale_shape)
    rows, columns = left.shape[-2], right.shape[-1]
    if a_scale is not None and a_scale.numel() != 1:
        if a_scale.shape[-1] != 1 or a_scale.dim() < 2:
            left, a_scale = left * _of_blocks("A_scale_inv", a_scale, left.shape), None
        elif a_scale.shape[-2] not in (1, rows):
            raise RuntimeError(f"A_scale_inv {tuple(a_scale.shape)} for {rows} rows")
    if b_scale is not None and b_scale.numel() != 1:
        if b_scale.dim() > 1 and b_scale.shape[-2] != 1:
            right, b_scale = right * _of_blocks("B_scale_inv", b_scale, right.shape), None
        elif b_scale.shape[-1] != columns:
            raise RuntimeError(f"B_scale_inv {tuple(b_scale.shape)} for {columns} columns")
    out = apply_scale(apply_scale(torch.matmul(left, right), a_scale), b_scale)
    if bias is not None:
        out = out + bias.float()
    if accumulate and d is not None:
        out = out + d.float()
    return out.to(out_dtype)


def _declare_gemm(overload: str, scales: str) -> None:
    kernel(
        f"fp8_gemm_v2{overload}(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, "
        f"ScalarType out_dtype, {scales}, Tensor? bias=None, bool accumulate=False, "
        "int[]? B_scale_shape=None) -> Tensor"
    )(fp8_gemm_v2)


_declare_gemm("", "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None")
_declare_gemm(".scalar", "float A_scale_inv, float B_scale_inv")
_declare_gemm(".scalar_list", "float[] A_scale_inv, float[] B_scale_inv")


def conv2d_fp8(
    tensor: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
    scale_input: Scale = None,
    scale_weight: Scale = None,
) -> Tensor:
    """Convolution of the real values: each operand times its scale."""
    check_fp8("input", tensor.dtype)
    check_fp8("weight", weight.dtype)
    out = F.conv2d(
        decode(tensor), decode(weight), None, list(stride), list(padding), list(dilation), groups
    )
    for scale in (scale_input, scale_weight):
        factor = scale_tensor(scale, tensor)
        if factor is not None and factor.numel() != 1:
            factor = factor.reshape(1, -1, 1, 1)
        out = apply_scale(out, factor)
    if bias is not None:
        out = out + bias.float().view(1, -1, 1, 1)
    return out.to(_out_dtype(out_dtype))


def _declare_convolution(overload: str, scales: str) -> None:
    kernel(
        f"conv2d_fp8{overload}(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, "
        "int[2] padding=0, int[2] dilation=1, int groups=1, ScalarType? out_dtype=None, "
        f"{scales}) -> Tensor"
    )(conv2d_fp8)


_declare_convolution("", "Tensor? scale_input=None, Tensor? scale_weight=None")
_declare_convolution(".scalar", "float scale_input=1.0, float scale_weight=1.0")


@kernel(
    "sum_fp8(Tensor self, int[1]? dim=None, bool keepdim=False, ScalarType? out_dtype=None) "
    "-> Tensor"
)
def sum_fp8(
    tensor: Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    check_fp8("self", tensor.dtype)
    out = decode(tensor).sum(dim=None if dim is None else list(dim), keepdim=keepdim)
    dtype = out_dtype or tensor.dtype
    return encode(out, dtype) if dtype in FP8 else out.to(_out_dtype(dtype))


def softmax_fp8(
    scores: Tensor,
    dim: int,
    input_scale: Scale = None,
    output_scale: Scale = None,
    inv_attn_heads: Scale = None,
    fused_add: Tensor | None = None,
) -> Tensor:
    """softmax(input * input_scale * inv_attn_heads + fused_add) * output_scale.

    float8_e4m3fn where there are scales, else bfloat16.
    """
    if input_scale is None and output_scale is not None:
        raise RuntimeError("output_scale needs input_scale")
    wide = widen(scores)
    for scale in (input_scale, inv_attn_heads):
        wide = apply_scale(wide, scale_tensor(scale, scores))
    if fused_add is not None:
        wide = wide + fused_add.float()
    out = torch.softmax(wide, dim=dim)
    if out.shape != scores.shape:
        raise RuntimeError(f"fused_add does not fit {tuple(scores.shape)}")
    if input_scale is None:
        return out.to(torch.bfloat16)
    return encode(apply_scale(out, scale_tensor(output_scale, scores)), E4M3)


def _declare_softmax(overload: str, scales: str) -> None:
    kernel(
        f"softmax_fp8{overload}(Tensor input, int dim, {scales}, Tensor? fused_add=None) -> Tensor"
    )(softmax_fp8)


_declare_softmax(
    "", "Tensor? input_scale=None, Tensor? output_scale=None, Tensor? inv_attn_heads=None"
)
_declare_softmax(
    ".Scalar_scales", "float input_scale, float output_scale, Tensor? inv_attn_heads=None"
)
_declare_softmax(".Scalar", "float input_scale, float output_scale, float inv_attn_heads")
