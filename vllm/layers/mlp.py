"""Feed-forward blocks."""

from __future__ import annotations

from torch import Tensor, nn

from vllm.layers.activation import plain
from vllm.layers.context import ModelContext
from vllm.layers.linear import GatedLinear, Linear
from vllm.layers.shapes import Shard, unfused


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)).   x: [T, H] -> [T, H]"""

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        act: str,
        context: ModelContext,
        bias: bool = False,
        partial: bool = False,
    ) -> None:
        """With `partial` the outputs are this rank's share of a sum (see LinearShape)."""
        super().__init__()
        self.gate_up = GatedLinear(hidden, intermediate, act, context, bias)
        self.down = Linear(unfused(intermediate, hidden, Shard.ROW, bias, partial), context)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up(x))


class MLP(nn.Module):
    """down(act(up(x))).   x: [T, H] -> [T, H]"""

    def __init__(
        self, hidden: int, intermediate: int, act: str, context: ModelContext, bias: bool = False
    ) -> None:
        super().__init__()
        self.up = Linear(unfused(hidden, intermediate, Shard.COLUMN, bias), context)
        self.down = Linear(unfused(intermediate, hidden, Shard.ROW, bias), context)
        self.act = plain(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))
