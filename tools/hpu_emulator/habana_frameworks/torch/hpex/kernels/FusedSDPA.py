"""Fused attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hpu_emulator.ops  # noqa: F401  registers the kernels
import torch
from habana_frameworks.torch.hpex.kernels.grouped_heads import (
    gqa_input_reshape_fwd,
    gqa_output_reshape,
    is_gqa,
)
from torch import Tensor

__all__ = ["FusedSDPA", "gqa_input_reshape_fwd", "gqa_output_reshape", "is_gqa"]


class FusedSDPA(torch.autograd.Function):
    """Called by `apply` with positional arguments only. For inference; there is no backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute_mode: bool | None = None,
        valid_seq_len: Tensor | None = None,
        seq_padding_type: str = "left",
        return_dropout_mask: bool = False,
        return_attn_probs: bool = False,
        window_size: Sequence[int] | None = (-1, -1),
        sink: Tensor | None = None,
    ) -> Any:
        scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
        if recompute_mode is None:
            recompute_mode = torch.hpu.recompute_sdp_enabled()
        mode = softmax_mode.lower()
        has_window = window_size is not None and tuple(window_size) != (-1, -1)
        if return_attn_probs or not (recompute_mode or q.shape[2] == 1):
            if has_window or sink is not None:
                raise RuntimeError("window_size and sink need recompute_mode")
            out, probabilities, dropout_mask = torch.ops.hpu.sdpa_fwd(
                q, k, v, attn_mask, dropout_p, scale, is_causal, mode, valid_seq_len,
                seq_padding_type,
            )  # fmt: skip
            found = [out]
            found += [probabilities] * return_attn_probs + [dropout_mask] * return_dropout_mask
            return found[0] if len(found) == 1 else tuple(found)
        if return_dropout_mask:
            raise RuntimeError("return_dropout_mask needs recompute_mode=False")
        window = list(window_size) if window_size is not None and has_window else None
        return torch.ops.hpu.sdpa_recomp_fwd(
            q, k, v, attn_mask, dropout_p, scale, is_causal, False, mode, valid_seq_len,
            seq_padding_type, window, sink,
        )[0]  # fmt: skip
