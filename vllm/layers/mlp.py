"""Feed-forward blocks."""

from __future__ import annotations

from torch import Tensor, nn

from vllm.layers.activation import gated, plain
from vllm.layers.context import ModelContext
from vllm.layers.linear import Linear, LinearShape, Part, Shard, single


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)).   x: [T, H] -> [T, H]"""

    def __init__(
        self, hidden: int, intermediate: int, act: str, context: ModelContext, bias: bool = False
    ) -> None:
        super().__init__()
        parts = (Part("gate", intermediate), Part("up", intermediate))
        self.gate_up = Linear(LinearShape(hidden, parts, Shard.COLUMN, bias), context)
        self.down = Linear(single(intermediate, hidden, Shard.ROW, bias), context)
        self.act = gated(act, context.ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate_up(x)))


class MLP(nn.Module):
    """down(act(up(x))).   x: [T, H] -> [T, H]"""

    def __init__(
        self, hidden: int, intermediate: int, act: str, context: ModelContext, bias: bool = False
    ) -> None:
        super().__init__()
        self.up = Linear(single(hidden, intermediate, Shard.COLUMN, bias), context)
        self.down = Linear(single(intermediate, hidden, Shard.ROW, bias), context)
        self.act = plain(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))
