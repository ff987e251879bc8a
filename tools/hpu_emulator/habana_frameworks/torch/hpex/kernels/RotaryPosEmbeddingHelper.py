"""Rotary embedding helpers."""

from __future__ import annotations

from enum import Enum

import hpu_emulator.ops  # noqa: F401  registers the kernels
import torch
from torch import Tensor


class RotaryPosEmbeddingMode(Enum):
    BLOCKWISE = 0
    PAIRWISE = 1


def apply_rotary_pos_emb(
    p: Tensor,
    cos: Tensor,
    sin: Tensor | None = None,
    position_ids: Tensor | None = None,
    offset: int = 0,
    mode: RotaryPosEmbeddingMode = RotaryPosEmbeddingMode.BLOCKWISE,
) -> Tensor:
    """By tables of cosines and sines, or, with the first alone, by a rope cache as V3 takes it."""
    if sin is None:
        return RotaryPosEmbeddingHelperV3.apply(p, cos)
    return torch.ops.hpu.rotary_pos_embedding(p, sin, cos, position_ids, offset, mode.value)


class RotaryPosEmbeddingHelperV1:
    """Neox style, with an offset."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, offset: int) -> Tensor:
        return apply_rotary_pos_emb(p, cos, sin, None, offset)


class RotaryPosEmbeddingHelperV2:
    """Neox style, by position ids."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
        return apply_rotary_pos_emb(p, cos, sin, position_ids, 0)


class RotaryPosEmbeddingHelperV3:
    """ChatGLM style: pairs of the head's beginning, by a cache of (cosine, sine)."""

    @staticmethod
    def apply(p: Tensor, rope_cache: Tensor) -> Tensor:
        """p [S, B, H, D], rope_cache [S or more, B or 1, R // 2, 2], or without the batch."""
        if p.dim() != 4 or rope_cache.dim() not in (3, 4) or rope_cache.shape[-1] != 2:
            raise RuntimeError(
                f"p {tuple(p.shape)} is not [S, B, H, D], or rope_cache {tuple(rope_cache.shape)} "
                "not [S, B, R // 2, 2]"
            )
        width = 2 * rope_cache.shape[-2]
        turning, passing = p[..., :width], p[..., width:]
        cache = rope_cache[: p.shape[0]]
        cache = cache.unsqueeze(1) if cache.dim() == 3 else cache
        # [S, B or 1, 1, R]: each factor stands for both of its pair.
        cos, sin = (part.repeat_interleave(2, dim=-1).unsqueeze(2) for part in cache.unbind(-1))
        turned = torch.ops.hpu.rotary_pos_embedding(
            turning, sin, cos, None, 0, RotaryPosEmbeddingMode.PAIRWISE.value
        )
        return torch.cat((turned, passing.to(turned.dtype)), dim=-1)
