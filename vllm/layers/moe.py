"""Mixture of experts: a router chooses experts per token, `ops.moe` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm.layers.activation import gated_name
from vllm.layers.context import ModelContext
from vllm.layers.weights import Loadable, Slot


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


class Router(Loadable):
    """x [T, H] -> weights [T, k] float32 and expert ids [T, k] of the chosen experts."""

    def __init__(self, routing: Routing, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.routing = routing
        self.weight = context.parameter(routing.num_experts, hidden)
        self.bias = (
            context.parameter(routing.num_experts, dtype=torch.float32)
            if routing.correction
            else None
        )

    def finish(self) -> None:
        if self.routing.wide:
            self.weight = nn.Parameter(self.weight.float(), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        routing = self.routing
        logits = F.linear(x.to(self.weight.dtype), self.weight).float()  # [T, E]
        scores = logits.softmax(-1) if routing.score == "softmax" else logits.sigmoid()
        choice = scores if self.bias is None else scores + self.bias
        if routing.groups > 1:
            choice = self._within_best_groups(choice)
        ids = choice.topk(routing.top_k, dim=-1).indices
        weights = scores.gather(1, ids)
        if routing.renormalise:
            # The smallest term that matters only where all sigmoids underflow.
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * routing.scale, ids

    def _within_best_groups(self, choice: Tensor) -> Tensor:
        """`choice` [T, E] with -inf for experts outside the best groups."""
        routing = self.routing
        grouped = choice.unflatten(-1, (routing.groups, -1))  # [T, G, E / G]
        counted = 2 if routing.correction else 1
        quality = grouped.topk(counted, dim=-1).values.sum(-1)  # [T, G]
        best = quality.topk(routing.top_groups, dim=-1).indices
        closed = torch.ones_like(quality, dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)


class Experts(Loadable):
    """Gated MLPs, one per expert; a rank has some of the intermediate width of each."""

    w13: Tensor
    w2: Tensor

    def __init__(
        self, num_experts: int, hidden: int, intermediate: int, act: str, context: ModelContext
    ) -> None:
        super().__init__()
        self.hidden, self.intermediate = hidden, intermediate
        self.start, width = context.shard.span(intermediate)
        self.num_experts = num_experts
        self.act = gated_name(act)
        self.method = context.experts_method
        self.method.create(self, num_experts, hidden, width, context)

    def slots(self) -> Iterator[Slot]:
        wide = (self.intermediate, self.hidden)
        for expert in range(self.num_experts):
            gate, up, down = self.method.targets(self, expert)
            yield Slot("w13", gate, wide, "gate", expert, dim=0, start=self.start)
            yield Slot("w13", up, wide, "up", expert, dim=0, start=self.start)
            yield Slot("w2", down, wide[::-1], "", expert, dim=1, start=self.start)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return self.method.apply(self, x, weights, ids)

    def finish(self) -> None:
        self.method.finish(self)


class MoE(nn.Module):
    """x [T, H] -> [T, H] through the chosen experts."""

    def __init__(
        self, routing: Routing, hidden: int, intermediate: int, act: str, context: ModelContext
    ) -> None:
        super().__init__()
        self.router = Router(routing, hidden, context)
        self.experts = Experts(routing.num_experts, hidden, intermediate, act, context)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x)
        return self.experts(x, weights, ids)


class SharedMoE(nn.Module):
    """Experts that are chosen, plus one MLP that every token passes."""

    def __init__(self, routed: MoE, shared: nn.Module) -> None:
        super().__init__()
        self.routed = routed
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.routed(x) + self.shared(x)
