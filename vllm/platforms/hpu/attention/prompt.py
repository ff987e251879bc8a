"""Prefill: the launch's own keys and values, behind those of the context."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.attention.interface import AttentionSpec


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """q [R, N, Q, D], k [R, K, S, D], v [R, K, S, Dv], additive mask [R, 1, Q, S] -> [R, N, Q, Dv].

    The softmax is computed in the mask's dtype.
    """
    num_kv_heads = k.shape[1]
    grouped = (q * spec.scale).unflatten(1, (num_kv_heads, -1))  # [R, K, G, Q, D]
    scores = grouped @ k.unsqueeze(2).mT  # [R, K, G, Q, S]
    scores = scores.to(mask.dtype)
    if spec.softcap > 0:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    weights = torch.softmax(scores + mask.unsqueeze(1), dim=-1)
    return (weights.to(v.dtype) @ v.unsqueeze(2)).flatten(1, 2)
