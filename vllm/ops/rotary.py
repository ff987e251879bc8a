"""Rotary position embedding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vllm.ops.registry import op

RotaryStyle = Literal["neox", "interleaved"]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle) -> Tensor:
    half = cos.shape[-1]
    turned, kept = x[..., : 2 * half].float(), x[..., 2 * half :]
    if style == "neox":
        a, b = turned[..., :half], turned[..., half:]
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
    c, s = cos.float().unsqueeze(1), sin.float().unsqueeze(1)  # [T, 1, R/2]
    a, b = a * c - b * s, b * c + a * s
    joined = torch.cat((a, b), -1) if style == "neox" else torch.stack((a, b), -1).flatten(-2)
    return torch.cat((joined.to(x.dtype), kept), -1)


@op
def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle
) -> tuple[Tensor, Tensor]:
    """Rotate the first R dimensions of every head; the others pass through.

    q [T, N, D], k [T, K, D], cos and sin [T, R/2] -> new tensors shaped as q and k. `neox` pairs
    dimension i with i + R/2, `interleaved` pairs 2i with 2i + 1.
    """
    return _rotate(q, cos, sin, style), _rotate(k, cos, sin, style)
