"""Mixture of experts: the expert MLPs, after routing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.ops.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from vllm.ops.registry import op

GATED_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": gelu_tanh_and_mul,
}


@op
def moe(
    x: Tensor, w13: Tensor, w2: Tensor, topk_ids: Tensor, topk_weights: Tensor, act: str
) -> Tensor:
    """Weighted sum of the chosen experts' gated MLPs.

    x [T, H], w13 [E, 2 * I, H] (gate rows, then up rows), w2 [E, H, I], topk_ids and topk_weights
    [T, k] -> [T, H] in x's dtype. `act` names a gated activation: silu, gelu or gelu_tanh.
    Each expert runs once, over exactly its tokens.
    """
    top_k = topk_ids.shape[1]
    flat = topk_ids.flatten()
    order = torch.argsort(flat, stable=True)
    token = order // top_k
    scale = topk_weights.flatten()[order].unsqueeze(1)
    counts = torch.bincount(flat, minlength=w13.shape[0]).tolist()
    gated = GATED_ACTIVATIONS[act]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    begin = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(begin, begin + count)
        hidden = gated(F.linear(x[token[rows]], w13[expert]))
        out.index_add_(0, token[rows], (F.linear(hidden, w2[expert]) * scale[rows]).float())
        begin += count
    return out.to(x.dtype)
