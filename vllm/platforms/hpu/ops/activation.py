"""Activations that HPU would compute differently."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

_INVERSE_ROOT2: Final = 1 / math.sqrt(2)


def gelu_and_mul(x: Tensor) -> Tensor:
    """As the reference. The device takes torch's gelu for its tanh approximation by default."""
    gate, up = x.chunk(2, dim=-1)
    wide = gate.float()
    gated = 0.5 * wide * (1.0 + torch.erf(wide * _INVERSE_ROOT2))
    return gated.to(x.dtype) * up
