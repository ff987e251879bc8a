"""Fused attention over fp8."""

from __future__ import annotations

import math

import hpu_emulator.ops  # noqa: F401  registers the kernels
import torch
from habana_frameworks.torch.hpex.kernels.grouped_heads import (
    gqa_input_reshape_fwd,
    gqa_output_reshape,
    is_gqa,
)
from torch import Tensor

__all__ = ["fp8_fused_sdpa", "gqa_input_reshape_fwd", "gqa_output_reshape", "is_gqa"]

Scale = Tensor | float | None


def fp8_fused_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    softmax_mode: str = "None",
    d_scale_q: Scale = None,
    d_scale_k: Scale = None,
    d_scale_v: Scale = None,
    q_scale_s: Scale = None,
    q_scale_o: Scale = None,
    d_scale_s: Scale = None,
    is_amax_s: bool = False,
    is_amax_o: bool = False,
    valid_seq_len: Tensor | None = None,
    seq_padding_type: str = "left",
    recompute: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, amax of the softmax, amax of the output). Scales are all tensors, or all floats."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if recompute is None:
        recompute = torch.hpu.recompute_sdp_enabled()
    scales = (d_scale_q, d_scale_k, d_scale_v, q_scale_s, q_scale_o, d_scale_s)
    num_floats = sum(isinstance(given, float) for given in scales)
    if num_floats not in (0, len(scales)):
        raise TypeError("the six scales are all floats, or tensors and None")
    mode = softmax_mode.lower()
    # Scales that are floats exist for the recomputing kernel only.
    if recompute or num_floats or q.shape[-2] == 1:
        out, _, _, _, amax_s, amax_o = torch.ops.hpu.fp8_sdpa_recomp_fwd(
            q, k, v, attn_mask, dropout_p, scale, is_causal, False, mode, *scales, is_amax_s,
            is_amax_o, valid_seq_len, seq_padding_type,
        )  # fmt: skip
        return out, amax_s, amax_o
    if is_amax_o:
        raise RuntimeError("is_amax_o needs recompute=True")
    out, _, _, amax_s = torch.ops.hpu.fp8_sdpa_fwd(
        q, k, v, attn_mask, dropout_p, scale, is_causal, mode, *scales, is_amax_s, valid_seq_len,
        seq_padding_type,
    )  # fmt: skip
    return out, amax_s, torch.zeros_like(amax_s)
