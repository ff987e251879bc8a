"""Softmax over scores that are split in blocks of keys, as flat paged attention has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor


def _of_nobody(groups: Tensor, dims: int) -> Tensor:
    return (groups < 0).view(-1, *[1] * (dims - 1))


@kernel("block_softmax(Tensor attn, Tensor bias, Tensor groups) -> (Tensor, Tensor, Tensor)")
def block_softmax(attn: Tensor, bias: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """attn [n, kv, gqa, t, bs], bias [n, 1, 1, t, bs], groups [n] -> (exp, maximum, sum).

    The last two are [n, kv * gqa * t]. Blocks of group -1 have exp 0.
    """
    if attn.dim() != 5 or bias.dim() != 5:
        raise RuntimeError(f"attn and bias have 5 dimensions, got {attn.dim()} and {bias.dim()}")
    scores = attn.float() + bias.float()
    peak = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights.masked_fill(_of_nobody(groups, 5), 0.0)
    flat = (peak.flatten(1).to(attn.dtype), total.flatten(1).to(attn.dtype))
    return weights.to(attn.dtype), *flat


@kernel(
    "block_softmax_adjustment(Tensor block_max, Tensor block_sum, Tensor groups, "
    "SymInt batch_size, SymInt[]? out_shape=None) -> Tensor"
)
def block_softmax_adjustment(
    block_max: Tensor,
    block_sum: Tensor,
    groups: Tensor,
    batch_size: int,
    out_shape: Sequence[int] | None = None,
) -> Tensor:
    """exp(max_b - max_g) / sum_g per block b of group g; 0 for blocks of group -1."""
    if out_shape is None and block_max.dim() != 5:
        raise RuntimeError("out_shape is needed unless the inputs have 5 dimensions")
    peak, total = block_max.flatten(1).float(), block_sum.flatten(1).float()
    is_nobody = _of_nobody(groups, 2)
    # Statistics of blocks that belong to nobody are undefined.
    peak = peak.masked_fill(is_nobody, -torch.inf)
    total = total.masked_fill(is_nobody, 0.0)
    row = torch.where(groups < 0, batch_size, groups).long()
    index = row.unsqueeze(1).expand_as(peak)
    peaks = peak.new_full((batch_size + 1, peak.shape[1]), -torch.inf)
    peaks = peaks.scatter_reduce(0, index, peak, "amax")
    share = torch.exp(peak - peaks.gather(0, index)).masked_fill(is_nobody, 0.0)
    totals = total.new_zeros(peaks.shape).scatter_add(0, index, total * share)
    factor = torch.where(is_nobody, 0.0, share / totals.gather(0, index)).to(block_max.dtype)
    if out_shape is None:
        return factor.view(block_max.shape)
    width = 1
    for size in out_shape[1:]:
        width *= size
    return factor[:, :width].reshape(list(out_shape))


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
    is_nobody = _of_nobody(groups, attn.dim())
    weights = torch.exp(attn.float() + bias.float() - global_max).masked_fill(is_nobody, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    row = torch.where(groups < 0, batch_size, groups).long()
    totals = total.new_zeros((batch_size + 1, *total.shape[1:])).index_add(0, row, total)
    tiny = torch.finfo(torch.float32).tiny
    out = weights / (totals.index_select(0, row) + tiny) * output_scale
    return out.to(output_dtype or attn.dtype)


@kernel(
    "block_softmax_staged_sum_max(Tensor block_max, Tensor block_sum, Tensor groups, "
    "SymInt batch_size) -> (Tensor, Tensor)"
)
def block_softmax_staged_sum_max(
    block_max: Tensor, block_sum: Tensor, groups: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Maximum and sum of each group, given to every block of it."""
    row = torch.where(groups < 0, batch_size, groups).long()
    index = row.unsqueeze(1).expand_as(block_max)
    peak = block_max.float().masked_fill(_of_nobody(groups, 2), -torch.inf)
    peaks = peak.new_full((batch_size + 1, peak.shape[1]), -torch.inf)
    peaks = peaks.scatter_reduce(0, index, peak, "amax")
    share = torch.exp(peak - peaks.gather(0, index)).nan_to_num(0.0)
    total = block_sum.float().masked_fill(_of_nobody(groups, 2), 0.0) * share
    totals = total.new_zeros(peaks.shape).scatter_add(0, index, total)
    dtype = block_max.dtype
    return peaks.gather(0, index).to(dtype), totals.gather(0, index).to(dtype)


@kernel(
    "softmax_fa2(Tensor input, Tensor? inputM=None, Tensor? inputL=None, int dim=-1) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def softmax_fa2(
    scores: Tensor, peak: Tensor | None = None, total: Tensor | None = None, dim: int = -1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of an online softmax: (exp(x - M'), M', L', exp(M - M'))."""
    found = scores.float().amax(dim=dim, keepdim=True)
    before = torch.full_like(found, -torch.inf) if peak is None else peak.float()
    highest = torch.maximum(found, before)
    correction = torch.exp(before - highest)
    weights = torch.exp(scores.float() - highest)
    sums = weights.sum(dim=dim, keepdim=True)
    if total is not None:
        sums = sums + total.float() * correction
    dtype = scores.dtype
    return weights.to(dtype), highest.to(dtype), sums.to(dtype), correction.to(dtype)
