"""Gated activations: the first half of the last dimension is the gate, the second is gated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vllm.ops.registry import op


@op
def silu_and_mul(x: Tensor) -> Tensor:
    """[..., 2 * I] -> [..., I]: silu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@op
def gelu_and_mul(x: Tensor) -> Tensor:
    """[..., 2 * I] -> [..., I]: gelu(gate) * up with the exact (erf) gelu."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate) * up


@op
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """[..., 2 * I] -> [..., I]: gelu(gate) * up with the tanh approximation of gelu."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up
