"""Rotary embedding through Habana's kernel, with cos and sin spread once per launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vllm.ops.rotary import RopeTable, RotaryStyle

# The kernel's numbers of which dimensions form a pair.
_MODES: Final[dict[RotaryStyle, int]] = {"neox": 0, "interleaved": 1}


@dataclass(frozen=True, slots=True)
class FusedRotary:
    """`rope_rows` and `rotary` belong together: between them, cos and sin are [T, 1, R]."""

    kernel: Callable[..., Tensor]
    recompute: bool = False  # cos and sin from frequencies instead of the table

    def rope_rows(
        self, table: RopeTable, positions: Tensor, style: RotaryStyle
    ) -> tuple[Tensor, Tensor]:
        if self.recompute and table.inverse.numel():
            angles = positions.float().unsqueeze(1) * table.inverse
            cos, sin = angles.cos() * table.scale, angles.sin() * table.scale
        else:
            cos = table.cos.index_select(0, positions)
            sin = table.sin.index_select(0, positions)
        return _spread(cos, style), _spread(sin, style)

    def rotary(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle
    ) -> tuple[Tensor, Tensor]:
        return self._rotate(q, cos, sin, style), self._rotate(k, cos, sin, style)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle) -> Tensor:
        width = cos.shape[-1]
        # float32 throughout, as cos and sin are: rounded to bfloat16, far positions run together.
        turned = self.kernel(x[..., :width], sin, cos, None, 0, _MODES[style]).to(x.dtype)
        return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), -1)


def _spread(rows: Tensor, style: RotaryStyle) -> Tensor:
    """[T, R/2] -> [T, 1, R], an angle in the places of both of its pair."""
    if style == "neox":
        return torch.cat((rows, rows), -1).unsqueeze(1)
    return torch.stack((rows, rows), -1).flatten(1).unsqueeze(1)
