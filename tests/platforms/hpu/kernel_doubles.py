"""Habana's kernels as their documentation defines them, for tests of what calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vllm.platforms.hpu.kernels import Kernels


@dataclass(slots=True)
class Calls:
    """What the kernels were given."""

    fused: list[tuple[Any, ...]] = field(default_factory=list)
    pieces: list[tuple[int, int, bool]] = field(default_factory=list)  # queries, keys, masked
    experts: list[dict[str, Any]] = field(default_factory=list)


def kernels(calls: Calls | None = None) -> Kernels:
    calls = calls or Calls()

    def fused_sdpa(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        calls.fused.append(rest)
        names = ("mask", "dropout", "causal", "scale", "mode", "recompute", "lengths", "side")
        given = dict(zip((*names, "dropout_mask", "probabilities", "window"), rest, strict=False))
        assert given["mask"] is None or not given["causal"]
        assert given.get("lengths") is None or (given["causal"] and given["side"] == "right")
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q.double() @ k.double().mT) * given["scale"]
        query = torch.arange(q.shape[2])[:, None]
        key = torch.arange(k.shape[2])[None, :]
        hidden = torch.zeros_like(scores, dtype=torch.bool)
        if given["causal"]:
            hidden |= key > query
        if given.get("lengths") is not None:
            hidden |= key >= given["lengths"].view(-1, 1, 1, 1)
        if given.get("window"):
            hidden |= key < query - given["window"][0]
        if given["mask"] is not None:
            scores = scores + given["mask"]
        scores = scores.masked_fill(hidden, -torch.inf)
        return (scores.softmax(-1) @ v.double()).to(q.dtype)

    def sdpa_forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        calls.pieces.append((q.shape[-2], k.shape[-2], mask is not None))
        dropout, scale, causal, statistics, _, lengths, _ = rest
        assert not causal and statistics and lengths is None and dropout == 0.0
        scores = (q.float() @ k.float().mT) * scale
        if mask is not None:
            scores = scores + mask.float()
        peak = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - peak)
        inverse = 1 / weights.sum(-1, keepdim=True)
        return ((weights * inverse) @ v.float()).to(q.dtype), peak, inverse, None

    def mixture_of_experts(**given: Any) -> Tensor:
        calls.experts.append(given)
        return _experts(**given)

    return Kernels(
        fused_sdpa=fused_sdpa,
        sdpa_forward=sdpa_forward,
        rms_norm=_rms_norm,
        rotary=_rotary,
        mixture_of_experts=mixture_of_experts,
        block_softmax=_block_softmax,
        block_softmax_adjustment=_block_softmax_adjustment,
        block_softmax_const_max=_block_softmax_const_max,
    )


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    assert x.is_contiguous()
    wide = x.float()
    out = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    return out if x.dtype != weight.dtype else out.to(x.dtype)


def _rotary(x: Tensor, sin: Tensor, cos: Tensor, ids: None, offset: int, mode: int) -> Tensor:
    assert ids is None and offset == 0 and cos.shape[-1] == x.shape[-1]
    wide = x.float() if cos.dtype == torch.float32 else x
    if mode == 0:
        low, high = wide.chunk(2, -1)
        turned = torch.cat((-high, low), -1)
    else:
        turned = torch.stack((-wide[..., 1::2], wide[..., 0::2]), -1).flatten(-2)
    return wide * cos + turned * sin


def _experts(
    *,
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
    **_: int,
) -> Tensor:
    assert permuted_weights and len(w12) == len(w3) == experts_max - experts_min + 1
    assert expert_routing_table.dtype == torch.int64
    assert router_weights.dtype == hidden_states.dtype
    act = {
        "silu": torch.nn.functional.silu,
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }[activation]
    out = torch.zeros_like(hidden_states)
    for i, (wide, narrow) in enumerate(zip(w12, w3, strict=True)):
        share = (router_weights * (expert_routing_table == experts_min + i)).sum(1, keepdim=True)
        gate, up = (hidden_states @ wide.t()).chunk(2, -1)
        out += share * ((act(gate) * up) @ narrow.t())
    return out


def _block_softmax(scores: Tensor, bias: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    assert scores.dim() == bias.dim() == 5 and scores.dtype == bias.dtype
    biased = scores + bias
    peak = biased.amax(-1, keepdim=True)
    weights = torch.exp(biased - peak)
    total = weights.sum(-1, keepdim=True)
    nobody = (groups < 0).view(-1, 1, 1, 1, 1)
    undefined = torch.nan
    # Statistics with columns to spare, as the kernel may return them.
    peak, total = (x.masked_fill(nobody, undefined).flatten(1) for x in (peak, total))
    spare = peak.new_full((peak.shape[0], 3), undefined)
    return (
        weights.masked_fill(nobody, 0),
        torch.cat((peak, spare), 1),
        torch.cat((total, spare), 1),
    )


def _block_softmax_adjustment(
    peak: Tensor, total: Tensor, groups: Tensor, rows: int, out_shape: Sequence[int]
) -> Tensor:
    factor = torch.full_like(peak, torch.nan)
    for row in range(rows):
        mine = groups == row
        share = torch.exp(peak[mine] - peak[mine].amax(0)) if mine.any() else peak[mine]
        factor[mine] = share / (total[mine] * share).sum(0)
    return factor.view(*out_shape)


def _block_softmax_const_max(
    scores: Tensor,
    bias: Tensor,
    groups: Tensor,
    rows: int,
    peak: float,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    weights = torch.exp(scores + bias - peak) * scale
    for row in range(rows):
        mine = groups == row
        weights[mine] /= weights[mine].sum((0, -1), keepdim=True) + 1e-30
    weights[groups < 0] = 0
    return weights.to(dtype)
