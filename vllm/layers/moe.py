"""Mixture of experts: a router chooses experts per token, a method runs them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm.layers.activation import gated_name
from vllm.layers.context import ModelContext
from vllm.layers.methods import ExpertsMethod
from vllm.layers.shapes import Piece, Share
from vllm.layers.weighted import Weighted
from vllm.layers.weights import Destination, Loadable
from vllm.ops.moe import Routing


class Router(Weighted):
    """x [T, H] -> weights [T, k] float32 and expert ids [T, k] of the chosen experts."""

    may_stay_plain = True
    correction: Tensor | None

    def __init__(self, routing: Routing, hidden: int, context: ModelContext) -> None:
        dtype = torch.float32 if routing.wide else context.dtype
        super().__init__(routing.num_experts, hidden, dtype)
        self.routing = routing
        self.register_parameter("correction", None)
        if routing.correction:
            self.declare("correction", (routing.num_experts,), torch.float32)
        self.choose = context.ops.choose_experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.method.apply(self, x.float() if self.routing.wide else x)  # [T, E]
        chosen: tuple[Tensor, Tensor] = self.choose(logits, self.correction, self.routing)
        return chosen


class Experts(Loadable):
    """Gated MLPs, one per expert; a rank has some of the intermediate width of each.

    Outputs are the rank's share of a sum.
    """

    method: ExpertsMethod  # chosen by the loader, see vllm.layers.schemes
    w13: Tensor
    w2: Tensor
    # What methods that quantize have.
    w13_scales: Tensor
    w2_scales: Tensor

    def __init__(
        self, num_experts: int, hidden: int, intermediate: int, act: str, context: ModelContext
    ) -> None:
        super().__init__()
        self.hidden, self.intermediate, self.dtype = hidden, intermediate, context.dtype
        self.start, self.width = context.shard.span(intermediate, what="columns of an expert")
        self.num_experts = num_experts
        self.act = gated_name(act)

    def pieces(self) -> Iterator[Piece]:
        """Gate, up and down of every expert."""
        wide, tall = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        width, of_wide = self.width, Share(0, self.start, self.width)
        of_tall = Share(1, self.start, self.width)
        for expert in range(self.num_experts):
            yield Piece(wide, 0, width, "gate", expert, "w13.", of_wide)
            yield Piece(wide, width, width, "up", expert, "w13.", of_wide)
            yield Piece(tall, 0, self.hidden, "", expert, "w2.", of_tall)

    def allocate(self, device: torch.device) -> None:
        super().allocate(device)
        self.method.allocate(self, device)

    def destinations(self) -> Iterator[Destination]:
        return self.method.destinations(self)

    def finish(self) -> None:
        self.method.finish(self)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return self.method.apply(self, x, weights, ids)


class MoE(nn.Module):
    """x [T, H] -> [T, H] through the chosen experts."""

    def __init__(
        self,
        routing: Routing,
        hidden: int,
        intermediate: int,
        act: str,
        context: ModelContext,
        shared: nn.Module | None = None,
    ) -> None:
        """Every token passes `shared` as well, whose outputs must be partial sums."""
        super().__init__()
        self.router = Router(routing, hidden, context)
        self.experts = Experts(routing.num_experts, hidden, intermediate, act, context)
        self.shared = shared
        self.complete = context.tp.sum_of

    def forward(self, x: Tensor) -> Tensor:
        return self.complete(self._share, x)

    def _share(self, x: Tensor) -> Tensor:
        """What the experts' columns of this rank give; partial sums."""
        weights, ids = self.router(x)
        out: Tensor = self.experts(x, weights, ids)
        if self.shared is not None:
            out = out + self.shared(x)
        return out
