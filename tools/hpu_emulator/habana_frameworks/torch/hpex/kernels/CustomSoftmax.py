"""Softmax of bfloat16 over the last dimension."""

from __future__ import annotations

from typing import Any

import hpu_emulator.ops  # noqa: F401  registers the kernels
import torch
from torch import Tensor


class CustomSoftmax(torch.autograd.Function):
    """For inference; there is no backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, flavor: int) -> Tensor:
        return torch.ops.hpu.custom_softmax(scores, flavor)
