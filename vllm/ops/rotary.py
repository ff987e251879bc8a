"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vllm.ops.norm import rms_norm
from vllm.ops.registry import op

RotaryStyle = Literal["neox", "interleaved"]


class RopeTable(NamedTuple):
    """The rotation of every position below L."""

    cos: Tensor  # [L, R/2] float32
    sin: Tensor  # [L, R/2] float32
    # What the two are made from: cos is scale * cos(position * inverse).
    inverse: Tensor  # [R/2] float32; [0] where frequencies depend on the position
    scale: float


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
def rope_rows(table: RopeTable, positions: Tensor, style: RotaryStyle) -> tuple[Tensor, Tensor]:
    """cos and sin of tokens at positions [T] int32, in the form that `rotary` of a platform takes.

    Called once per launch, where `rotary` is called in every layer. This one gives [T, R/2].
    """
    return table.cos.index_select(0, positions), table.sin.index_select(0, positions)


@op
def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle
) -> tuple[Tensor, Tensor]:
    """Rotate the first R dimensions of every head; the others pass through.

    q [T, N, D], k [T, K, D], cos and sin from `rope_rows` -> new tensors like q and k. `neox` pairs
    dimension i with i + R/2, `interleaved` pairs 2i with 2i + 1.
    """
    return _rotate(q, cos, sin, style), _rotate(k, cos, sin, style)


QueriesAndKeys = Callable[..., tuple[Tensor, Tensor]]


def norm_then_rotate(norm: Callable[..., Tensor], turn: QueriesAndKeys) -> QueriesAndKeys:
    """What `normed_rotary` computes, by a platform's `rms_norm` and `rotary`."""

    def normed_rotary(
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        eps: float,
        cos: Tensor,
        sin: Tensor,
        style: RotaryStyle,
    ) -> tuple[Tensor, Tensor]:
        """`rotary` of queries and keys whose heads are normalised by weights [D] first."""
        return turn(norm(q, q_weight, eps), norm(k, k_weight, eps), cos, sin, style)

    return normed_rotary


normed_rotary = op(norm_then_rotate(rms_norm, rotary))
