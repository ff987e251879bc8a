"""Ops that models of earlier years call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor

NUM_BEAMS = 4


def _in_place(tensor: Tensor, *rest: object) -> Tensor:
    return tensor


def _reordered(cache: Tensor, start: Tensor, end: Tensor, beam_idx: Tensor) -> Tensor:
    """cache [B, 4, ..., S, D]: positions start to end [B] of beam i from the one beam_idx names.

    beam_idx is uint8 [B], two bits per beam, those of the first beam highest.
    """
    if cache.dim() < 4 or cache.shape[1] != NUM_BEAMS:
        raise RuntimeError(f"the cache {tuple(cache.shape)} is not [B, {NUM_BEAMS}, ..., S, D]")
    if not start.shape == end.shape == beam_idx.shape == cache.shape[:1]:
        raise RuntimeError(f"start, end and beam_idx have one entry for each of {cache.shape[0]}")
    shifts = torch.tensor([6, 4, 2, 0], dtype=torch.int32)
    beams = ((beam_idx.int().unsqueeze(1) >> shifts) & 3).long()
    moved = cache[torch.arange(cache.shape[0]).unsqueeze(1), beams]
    position = torch.arange(cache.shape[-2])
    is_moved = (position >= start.unsqueeze(1)) & (position < end.unsqueeze(1))
    is_moved = is_moved.view(-1, *[1] * (cache.dim() - 3), cache.shape[-2], 1)
    return torch.where(is_moved, moved, cache)


@kernel(
    "kv_reorder_(Tensor(a!) self, Tensor start, Tensor end, Tensor beam_idx) -> Tensor(a!)",
    meta=_in_place,
)
def kv_reorder_(cache: Tensor, start: Tensor, end: Tensor, beam_idx: Tensor) -> Tensor:
    return cache.copy_(_reordered(cache, start, end, beam_idx))


@kernel(
    "kv_reorder(Tensor self, Tensor start, Tensor end, Tensor beam_idx) -> Tensor",
    meta=lambda cache, *rest: torch.empty_like(cache),
)
def kv_reorder(cache: Tensor, start: Tensor, end: Tensor, beam_idx: Tensor) -> Tensor:
    return _reordered(cache, start, end, beam_idx)


def _interleaved(tensor: Tensor) -> Tensor:
    """Rows 0, 0, 0, 0, 1, 1, 1, 1 ...: the first quarter, once per beam."""
    if tensor.dim() != 4 or tensor.shape[0] % NUM_BEAMS:
        raise RuntimeError(
            f"{tuple(tensor.shape)}: four dimensions and {NUM_BEAMS} rows per sequence are needed"
        )
    return tensor[: tensor.shape[0] // NUM_BEAMS].repeat_interleave(NUM_BEAMS, dim=0)


@kernel("in_place_interleave_(Tensor(a!) self) -> Tensor(a!)", meta=_in_place)
def in_place_interleave_(tensor: Tensor) -> Tensor:
    return tensor.copy_(_interleaved(tensor))


@kernel("in_place_interleave(Tensor self) -> Tensor")
def in_place_interleave(tensor: Tensor) -> Tensor:
    return _interleaved(tensor)


@kernel("plain_index(Tensor self, Tensor[] indices) -> Tensor")
def plain_index(tensor: Tensor, indices: Sequence[Tensor]) -> Tensor:
    if not indices or len(indices) > tensor.dim():
        raise RuntimeError(f"{len(indices)} indices for {tensor.dim()} dimensions")
    return tensor[tuple(index.long() for index in indices)]


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.softmax(scores.float(), dim=-1).to(dtype)


@kernel("scaled_masked_softmax(Tensor input, Tensor mask, float scale) -> Tensor")
def scaled_masked_softmax(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    return _softmax(scores.float() * scale + mask.float(), scores.dtype)


def _triangular(scores: Tensor, scale: float) -> Tensor:
    if scores.dim() != 3:
        raise RuntimeError(f"{scores.dim()} dimensions: [batch, queries, keys] is needed")
    is_hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
    return (scores.float() * scale).masked_fill(is_hidden, -torch.inf)


@kernel(
    "scaled_triangular_softmax(Tensor self, float inv_scale_attn, Tensor? exp_sum_recpr=None, "
    "Tensor? max=None) -> Tensor"
)
def scaled_triangular_softmax(
    scores: Tensor,
    inv_scale_attn: float,
    exp_sum_recpr: Tensor | None = None,
    peak: Tensor | None = None,
) -> Tensor:
    """Causal softmax; with the two retained tensors, by those instead of new statistics."""
    if (exp_sum_recpr is None) != (peak is None):
        raise RuntimeError("exp_sum_recpr and max are given together")
    scaled = _triangular(scores, inv_scale_attn)
    if exp_sum_recpr is None or peak is None:
        return _softmax(scaled, scores.dtype)
    return (torch.exp(scaled - peak.float()) * exp_sum_recpr.float()).to(scores.dtype)


@kernel(
    "scaled_triangular_softmax_retain(Tensor self, float inv_scale_attn) "
    "-> (Tensor, Tensor, Tensor)"
)
def scaled_triangular_softmax_retain(
    scores: Tensor, inv_scale_attn: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Also the inverse sums, float32, and the maxima, both [..., 1]."""
    scaled = _triangular(scores, inv_scale_attn)
    peak = scaled.amax(dim=-1, keepdim=True).to(scores.dtype)
    weights = torch.exp(scaled - peak.float())
    inverse = weights.sum(dim=-1, keepdim=True).reciprocal()
    return (weights * inverse).to(scores.dtype), inverse, peak


@kernel("custom_softmax(Tensor input, int flavor) -> Tensor")
def custom_softmax(scores: Tensor, flavor: int) -> Tensor:
    """Flavor 1, a cheaper exponential, is computed as flavor 0."""
    if scores.dtype != torch.bfloat16:
        raise RuntimeError(f"input is {scores.dtype}, bfloat16 is needed")
    if flavor not in (0, 1):
        raise RuntimeError(f"flavor {flavor}: 0 or 1 is needed")
    return _softmax(scores, scores.dtype)


@kernel("ragged_softmax(Tensor self, int dim, bool half_to_float, Tensor valid_count) -> Tensor")
def ragged_softmax(scores: Tensor, dim: int, half_to_float: bool, valid_count: Tensor) -> Tensor:
    """Over the first valid_count [rows] entries of the last dimension of each row; others are 0."""
    if dim not in (-1, scores.dim() - 1):
        raise RuntimeError(f"dim {dim}: the last dimension is needed")
    if valid_count.numel() * scores.shape[-1] != scores.numel():
        raise RuntimeError(f"{valid_count.numel()} valid counts for {tuple(scores.shape)}")
    entry = torch.arange(scores.shape[-1], device=scores.device)
    is_valid = (entry < valid_count.reshape(-1, 1)).view(scores.shape)
    out = torch.softmax(scores.float().masked_fill(~is_valid, -torch.inf), dim=-1)
    return out.masked_fill(~is_valid, 0.0).to(torch.float32 if half_to_float else scores.dtype)


@kernel(
    "masked_batch_gemm(Tensor a, Tensor b, Tensor mask_a, Tensor mask_b, bool trans_a, "
    "bool trans_b) -> Tensor"
)
def masked_batch_gemm(
    a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor, trans_a: bool, trans_b: bool
) -> Tensor:
    """a · b + mask_a · mask_b, all [B, H or 1, ., .], each side transposed where asked for."""
    if any(tensor.dim() != 4 for tensor in (a, b, mask_a, mask_b)):
        raise RuntimeError("a, b and their masks have four dimensions")
    left, left_mask = (a.mT, mask_a.mT) if trans_a else (a, mask_a)
    right, right_mask = (b.mT, mask_b.mT) if trans_b else (b, mask_b)
    total = left.float() @ right.float() + left_mask.float() @ right_mask.float()
    return total.to(a.dtype)
