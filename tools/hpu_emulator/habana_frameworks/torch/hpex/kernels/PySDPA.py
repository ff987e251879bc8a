"""Attention composed of single ops."""

from __future__ import annotations

import math
from typing import Any

import hpu_emulator.ops  # noqa: F401  registers the kernels
import torch
from torch import Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    scale = 1.0 / math.sqrt(q.shape[-1])
    scores = torch.matmul(q.flatten(0, 1), k.flatten(0, 1).mT)
    if is_causal:
        weights = torch.ops.hpu.scaled_triangular_softmax(scores, scale)
    else:
        weights = torch.softmax(scores * scale, dim=-1)
    return torch.matmul(weights, v.flatten(0, 1)).unflatten(0, q.shape[:2])


class PySDPA(torch.autograd.Function):
    """q, k, v [B, H, S, D]. For inference; there is no backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, with_slice: bool = False
    ) -> Tensor:
        """`with_slice` computes head after head, with the same result."""
        return _attend(q, k, v, is_causal)


class PySDPAHinted(PySDPA):
    """The same, with hints for the graph compiler, which the emulator has no use for."""
