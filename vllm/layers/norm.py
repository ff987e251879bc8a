"""Normalisation layers. `eps` and the op are fixed at construction."""

from __future__ import annotations

from torch import Tensor

from vllm.layers.context import ModelContext
from vllm.layers.weights import Loadable


class RMSNorm(Loadable):
    """x [..., H] -> [..., H]."""

    weight: Tensor

    def __init__(self, width: int, eps: float, context: ModelContext) -> None:
        super().__init__()
        self.declare("weight", (width,), context.dtype)
        self.eps = eps
        self.norm = context.ops.rms_norm
        self.add_and_norm = context.ops.fused_add_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual)."""
        return self.add_and_norm(x, residual, self.weight, self.eps)


class GemmaRMSNorm(Loadable):
    """RMSNorm whose weight is stored as its difference from one."""

    weight: Tensor

    def __init__(self, width: int, eps: float, context: ModelContext) -> None:
        super().__init__()
        self.declare("weight", (width,), context.dtype)
        self.eps = eps
        self.norm = context.ops.gemma_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual)."""
        residual = x + residual
        return self.norm(residual, self.weight, self.eps), residual


class LayerNorm(Loadable):
    """Mean and variance over the last dimension: x [..., H] -> [..., H]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, eps: float, context: ModelContext) -> None:
        super().__init__()
        self.declare("weight", (width,), context.dtype)
        self.declare("bias", (width,), context.dtype)
        self.eps = eps
        self.norm = context.ops.layer_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual)."""
        residual = x + residual
        return self.norm(residual, self.weight, self.bias, self.eps), residual


Norm = RMSNorm | GemmaRMSNorm | LayerNorm
