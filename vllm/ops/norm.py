"""Normalisation over the last dimension, computed in float32 whatever the dtype of x."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.ops.registry import op


def _normalized(x: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


@op
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> [..., H] in x's dtype; rounded before the weight is applied."""
    return weight * _normalized(x, eps).to(x.dtype)


@op
def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), all [..., H]. Writes to neither input."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual


@op
def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As rms_norm with the weight stored as its difference from one, applied before rounding."""
    return (_normalized(x, eps) * (1.0 + weight.float())).to(x.dtype)


@op
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., H], weight and bias [H] -> [..., H]."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
