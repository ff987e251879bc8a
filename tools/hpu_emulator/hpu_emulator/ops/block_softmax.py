"""Softmax over scores that are split in blocks of keys, as flat paged attention has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hpu_emulator.ops.fp8 import FP8, encode
from hpu_emulator.ops.library import kernel
from torch import Tensor


def _of_nobody(groups: Tensor, dims: int) -> Tensor:
    return (groups < 0).view(-1, *[1] * (dims - 1))


def _rows(groups: Tensor, batch_size: int) -> Tensor:
    """The group of each block; what belongs to nobody, or beyond the batch, shares one more row."""
    return torch.where((groups < 0) | (groups >= batch_size), batch_size, groups).long()


def _cast(values: Tensor, scale: float | None, dtype: torch.dtype) -> Tensor:
    if scale is not None and scale != 1.0:
        values = values * scale
    return encode(values, dtype) if dtype in FP8 else values.to(dtype)


def _check(attn: Tensor, bias: Tensor, groups: Tensor) -> None:
    if attn.dim() != 5 or bias.dim() != 5:
        raise RuntimeError(f"attn and bias have 5 dimensions, got {attn.dim()} and {bias.dim()}")
    num_blocks, _, _, num_queries, block_size = attn.shape
    fits = bias.shape[0] == num_blocks and bias.shape[-1] == block_size
    if not fits or bias.shape[-2] not in (1, num_queries):
        raise RuntimeError(f"bias {tuple(bias.shape)} does not fit attn {tuple(attn.shape)}")
    if groups.shape != (num_blocks,):
        raise RuntimeError(f"groups {tuple(groups.shape)}: one per block, ({num_blocks},)")


def _check_statistics(peak: Tensor, total: Tensor, groups: Tensor) -> None:
    if peak.shape != total.shape or peak.dim() < 2:
        raise RuntimeError(f"block_max {tuple(peak.shape)}, block_sum {tuple(total.shape)}")
    if groups.shape != peak.shape[:1]:
        raise RuntimeError(f"groups {tuple(groups.shape)} for {peak.shape[0]} blocks")


@kernel(
    "block_softmax(Tensor attn, Tensor bias, Tensor groups, float? output_scale=None, "
    "ScalarType? output_dtype=None, bool fp8_exp=False) -> (Tensor, Tensor, Tensor)"
)
def block_softmax(
    attn: Tensor,
    bias: Tensor,
    groups: Tensor,
    output_scale: float | None = None,
    output_dtype: torch.dtype | None = None,
    fp8_exp: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """attn [n, kv, gqa, t, bs], bias [n, 1, 1, t, bs], groups [n] -> (exp, maximum, sum).

    The last two are [n, kv * gqa * t]. Blocks of group -1 have exp 0 and undefined statistics.
    """
    _check(attn, bias, groups)
    if fp8_exp:
        raise RuntimeError("block_softmax with fp8_exp is not emulated")
    scores = attn.float() + bias.float()
    peak = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    is_nobody = _of_nobody(groups, 5)
    weights = _cast(weights.masked_fill(is_nobody, 0.0), output_scale, output_dtype or attn.dtype)
    # Nobody may rely on what is undefined.
    peak = peak.masked_fill(is_nobody, torch.nan).flatten(1).to(attn.dtype)
    total = total.masked_fill(is_nobody, torch.nan).flatten(1).to(attn.dtype)
    return weights, peak, total


@kernel(
    "block_softmax_adjustment(Tensor block_max, Tensor block_sum, Tensor groups, "
    "SymInt batch_size, SymInt[]? out_shape=None, float? output_scale=None, "
    "ScalarType? output_dtype=None, Tensor? attn_fused_mult=None, bool is_staged=False) -> Tensor"
)
def block_softmax_adjustment(
    block_max: Tensor,
    block_sum: Tensor,
    groups: Tensor,
    batch_size: int,
    out_shape: Sequence[int] | None = None,
    output_scale: float | None = None,
    output_dtype: torch.dtype | None = None,
    attn_fused_mult: Tensor | None = None,
    is_staged: bool = False,
) -> Tensor:
    """exp(max_b - max_g) / sum_g per block b of group g; 0 for blocks of group -1."""
    _check_statistics(block_max, block_sum, groups)
    if attn_fused_mult is not None or is_staged:
        raise RuntimeError(
            "block_softmax_adjustment with attn_fused_mult or is_staged is not emulated"
        )
    if out_shape is None:
        if block_max.dim() != 5:
            raise RuntimeError("out_shape is needed unless the inputs have 5 dimensions")
        out_shape = block_max.shape
    share, totals = _shares(block_max, block_sum, groups, batch_size)
    factor = torch.where(share > 0, share / totals, 0.0)
    width = math.prod(out_shape[1:])
    if out_shape[0] != factor.shape[0] or width > factor.shape[1]:
        raise RuntimeError(f"out_shape {list(out_shape)} of statistics {tuple(block_max.shape)}")
    factor = factor[:, :width].reshape(list(out_shape))
    return _cast(factor, output_scale, output_dtype or block_max.dtype)


def _shares(
    block_max: Tensor, block_sum: Tensor, groups: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(exp(max_b - max_g), sum_g), both [n, columns] and float32."""
    peak, total = block_max.flatten(1).float(), block_sum.flatten(1).float()
    is_nobody = _of_nobody(groups, 2)
    peak = peak.masked_fill(is_nobody, -torch.inf)
    total = total.masked_fill(is_nobody, 0.0)
    index = _rows(groups, batch_size).unsqueeze(1).expand_as(peak)
    peaks = peak.new_full((batch_size + 1, peak.shape[1]), -torch.inf)
    peaks = peaks.scatter_reduce(0, index, peak, "amax")
    highest = peaks.gather(0, index)
    share = torch.exp(peak - highest).masked_fill(is_nobody | (highest == -torch.inf), 0.0)
    totals = total.new_zeros(peaks.shape).scatter_add(0, index, total * share)
    return share, totals.gather(0, index)


@kernel(
    "block_softmax_staged_sum_max(Tensor block_max, Tensor block_sum, Tensor groups, "
    "SymInt batch_size) -> (Tensor, Tensor)"
)
def block_softmax_staged_sum_max(
    block_max: Tensor, block_sum: Tensor, groups: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Maximum and sum of each group, given to every block of it; undefined for group -1."""
    _check_statistics(block_max, block_sum, groups)
    is_nobody = _of_nobody(groups, 2)
    peak = block_max.flatten(1).float().masked_fill(is_nobody, -torch.inf)
    index = _rows(groups, batch_size).unsqueeze(1).expand_as(peak)
    peaks = peak.new_full((batch_size + 1, peak.shape[1]), -torch.inf)
    highest = peaks.scatter_reduce(0, index, peak, "amax").gather(0, index)
    _, totals = _shares(block_max, block_sum, groups, batch_size)
    dtype, shape = block_max.dtype, block_max.shape
    highest = highest.masked_fill(is_nobody, torch.nan).to(dtype).view(shape)
    totals = totals.masked_fill(is_nobody, torch.nan).to(dtype).view(shape)
    return highest, totals


@kernel(
    "block_softmax_const_max(Tensor attn, Tensor bias, Tensor groups, SymInt batch_size, "
    "float global_max, float output_scale=1.0, ScalarType? output_dtype=None) -> Tensor"
)
def block_softmax_const_max(
    attn: Tensor,
    bias: Tensor,
    groups: Tensor,
    batch_size: int,
    global_max: float,
    output_scale: float = 1.0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Probabilities with a constant for the maximum of all scores; 0 for blocks of group -1."""
    _check(attn, bias, groups)
    is_nobody = _of_nobody(groups, attn.dim())
    weights = torch.exp(attn.float() + bias.float() - global_max).masked_fill(is_nobody, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    row = _rows(groups, batch_size)
    totals = total.new_zeros((batch_size + 1, *total.shape[1:])).index_add(0, row, total)
    tiny = torch.finfo(torch.float32).tiny
    out = weights / (totals.index_select(0, row) + tiny)
    return _cast(out, output_scale, output_dtype or attn.dtype)


@kernel(
    "softmax_fa2(Tensor input, Tensor? inputM=None, Tensor? inputL=None, int dim=-1, "
    "bool experimental_mode=False, Tensor? descale=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
def softmax_fa2(
    scores: Tensor,
    peak: Tensor | None = None,
    total: Tensor | None = None,
    dim: int = -1,
    experimental_mode: bool = False,
    descale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of an online softmax: (exp(x - M'), M', L', exp(M - M'))."""
    if experimental_mode:
        raise RuntimeError("softmax_fa2 in experimental_mode is not emulated")
    if (peak is None) != (total is None):
        raise RuntimeError("inputM and inputL are given together")
    wide = scores.float() if descale is None else scores.float() * descale.float()
    found = wide.amax(dim=dim, keepdim=True)
    before = torch.full_like(found, -torch.inf) if peak is None else peak.float()
    highest = torch.maximum(found, before)
    # Where nothing was seen yet, nothing is weighted.
    reference = highest.masked_fill(highest == -torch.inf, 0.0)
    correction = torch.exp(before - reference)
    weights = torch.exp(wide - reference)
    sums = weights.sum(dim=dim, keepdim=True)
    if total is not None:
        sums = sums + total.float() * correction
    dtype = scores.dtype
    return weights.to(dtype), highest.to(dtype), sums.to(dtype), correction.to(dtype)
