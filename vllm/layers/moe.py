"""Mixture of experts: a router chooses experts per token, a method runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from vllm.layers.activation import gated_name
from vllm.layers.context import ModelContext
from vllm.layers.linear import Weighted
from vllm.layers.weights import Loadable, Slot
from vllm.ops.moe import Routing


class Router(Weighted):
    """x [T, H] -> weights [T, k] float32 and expert ids [T, k] of the chosen experts."""

    def __init__(self, routing: Routing, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.routing = routing
        if routing.wide:
            context = replace(context, dtype=torch.float32)
        self.method = context.linear_method
        self.method.allocate(self, routing.num_experts, hidden, context)
        self.bias = None
        self.correction = (
            context.parameter(routing.num_experts, dtype=torch.float32)
            if routing.correction
            else None
        )
        self.choose = context.ops.choose_experts

    def slots(self) -> Iterator[Slot]:
        yield from super().slots()
        if self.correction is not None:
            yield Slot("correction", self.correction.data, tuple(self.correction.shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.method.apply(self, x.float() if self.routing.wide else x)  # [T, E]
        chosen: tuple[Tensor, Tensor] = self.choose(logits, self.correction, self.routing)
        return chosen


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
