"""Mixture of experts: which experts a token gets, and their MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen and weighted.

    With `groups` > 1, only the experts of the `top_groups` best groups may be chosen, where a group
    is as good as its best expert, or as its best two together where there is a `correction`. A
    correction is a learned bias that takes part in the choice but not in the weights.
    """

    num_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False  # weights of the chosen sum to one
    groups: int = 1
    top_groups: int = 1
    correction: bool = False
    scale: float = 1.0  # on the weights
    wide: bool = False  # scores from a float32 product


@op
def choose_experts(
    logits: Tensor, correction: Tensor | None, routing: Routing
) -> tuple[Tensor, Tensor]:
    """logits [T, E], correction [E] float32 -> weights [T, k] float32 and ids [T, k] int64.

    The best expert comes first. Of equally good ones a platform may choose any.
    """
    wide = logits.float()
    scores = wide.softmax(-1) if routing.score == "softmax" else wide.sigmoid()
    choice = scores if correction is None else scores + correction
    if routing.groups > 1:
        choice = _within_best_groups(choice, routing)
    ids = choice.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if routing.renormalise:
        # The smallest term that matters only where all sigmoids underflow.
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * routing.scale, ids


def _within_best_groups(choice: Tensor, routing: Routing) -> Tensor:
    """`choice` [T, E] with -inf for experts outside the best groups."""
    grouped = choice.unflatten(-1, (routing.groups, -1))  # [T, G, E / G]
    counted = 2 if routing.correction else 1
    quality = grouped.topk(counted, dim=-1).values.sum(-1)  # [T, G]
    best = quality.topk(routing.top_groups, dim=-1).indices
    closed = torch.ones_like(quality, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)


@op
def moe(
    x: Tensor, w13: Tensor, w2: Tensor, topk_ids: Tensor, topk_weights: Tensor, act: str
) -> Tensor:
    """Weighted sum of the chosen experts' gated MLPs.

    x [T, H], w13 [E, 2 * I, H] (gate rows, then up rows), w2 [E, H, I], topk_ids and topk_weights
    [T, k] -> [T, H] in x's dtype. `act` names a gated activation: silu, gelu or gelu_tanh.
    Each expert runs once, over exactly its tokens. A choice with the id -1 adds nothing.
    """
    top_k = topk_ids.shape[1]
    flat = topk_ids.flatten()
    order = torch.argsort(flat, stable=True)
    token = order // top_k
    scale = topk_weights.flatten()[order].unsqueeze(1)
    nowhere, *counts = torch.bincount(flat + 1, minlength=w13.shape[0] + 1).tolist()
    gated = GATED_ACTIVATIONS[act]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    begin = nowhere
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(begin, begin + count)
        hidden = gated(F.linear(x[token[rows]], w13[expert]))
        out.index_add_(0, token[rows], (F.linear(hidden, w2[expert]) * scale[rows]).float())
        begin += count
    return out.to(x.dtype)
