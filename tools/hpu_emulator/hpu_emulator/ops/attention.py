"""Fused scaled-dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor

SOFTMAX_MODES = ("none", "fast", "fp32")


def _hidden(
    num_queries: int,
    keys: Tensor,
    is_causal: bool,
    valid: Tensor | None,
    padding: str,
    window: Sequence[int] | None,
) -> Tensor | None:
    """[B or 1, 1, T, S], True where a query does not see a key; None: all see all."""
    num_keys = keys.shape[2]
    query = torch.arange(num_queries, device=keys.device).unsqueeze(1)
    key = torch.arange(num_keys, device=keys.device).unsqueeze(0)
    hidden = torch.zeros(1, 1, num_queries, num_keys, dtype=torch.bool, device=keys.device)
    if is_causal:
        hidden = hidden | (key > query)
    if window is not None and tuple(window) != (-1, -1):
        left, right = window
        if left >= 0:
            hidden = hidden | (key < query - left)
        if right >= 0:
            hidden = hidden | (key > query + right)
    if valid is not None:
        length = valid.view(-1, 1, 1, 1)
        hidden = hidden | (key >= length if padding == "right" else key < num_keys - length)
    return hidden


def _probabilities(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of scores [B, N, T, S] with the row maximum and the inverse row sum."""
    peak = scores.amax(dim=-1, keepdim=True)
    if sink is not None:
        peak = torch.maximum(peak, sink.view(1, -1, 1, 1).to(peak.dtype))
    # A row that sees nothing gives zeros.
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink.view(1, -1, 1, 1).to(peak.dtype) - peak)
    inverse = torch.where(total > 0, total.reciprocal(), 0.0)
    return weights * inverse, peak, inverse


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, mode: str) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise RuntimeError(f"q, k and v are [B, H, S, D], got {q.dim()}, {k.dim()}, {v.dim()} dims")
    if q.shape[1] % k.shape[1]:
        raise RuntimeError(f"{q.shape[1]} query heads do not divide over {k.shape[1]} KV heads")
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise RuntimeError(f"dtype {q.dtype}: float32, bfloat16 or float16 is needed")
    if mode not in SOFTMAX_MODES:
        raise RuntimeError(f"softmax_mode {mode!r}: one of {', '.join(SOFTMAX_MODES)} is needed")
    if mode == "fp32" and q.dtype != torch.bfloat16:
        raise RuntimeError(f"softmax_mode 'fp32' is for bfloat16, not for {q.dtype}")
    if mask is not None and mask.shape[-2:] != (q.shape[2], k.shape[2]):
        raise RuntimeError(f"mask {tuple(mask.shape)} for {q.shape[2]} queries, {k.shape[2]} keys")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    hidden: Tensor | None,
    mode: str,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output in q's dtype, probabilities, row maxima, inverse row sums), the last in float32."""
    group = q.shape[1] // k.shape[1]
    keys = k.repeat_interleave(group, dim=1) if group > 1 else k
    values = v.repeat_interleave(group, dim=1) if group > 1 else v
    scores = torch.matmul(q.float(), keys.float().mT) * scale
    if mask is not None:
        if mask.dim() == 2:
            mask = mask.view(1, 1, *mask.shape)
        is_kept = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if is_kept else scores + mask.float()
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    probabilities, peak, inverse = _probabilities(scores, sink)
    if mode == "fast" and q.dtype != torch.float32:
        # The hardware's fast softmax keeps no more than the inputs' precision.
        probabilities = probabilities.to(q.dtype).float()
    return torch.matmul(probabilities, values.float()).to(q.dtype), probabilities, peak, inverse


@kernel(
    "sdpa_recomp_fwd(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, "
    "bool is_causal, bool requires_backward, str softmax_mode, Tensor? valid_seq_len, "
    "str seq_padding_type, int[]? window_size=None, Tensor? sink=None) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def sdpa_recomp_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    requires_backward: bool,
    softmax_mode: str,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
    window_size: Sequence[int] | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(q, k, v, mask, softmax_mode)
    if p != 0.0:
        raise RuntimeError("dropout is for training, which is not emulated")
    if valid_seq_len is not None and (not is_causal or mask is not None):
        raise RuntimeError("valid_seq_len needs is_causal and no mask")
    if is_causal and mask is not None:
        raise RuntimeError("is_causal together with a mask is not supported")
    hidden = _hidden(q.shape[2], k, is_causal, valid_seq_len, seq_padding_type, window_size)
    out, _, peak, inverse = attend(q, k, v, mask, scale, hidden, softmax_mode, sink)
    seed = torch.empty(0, dtype=torch.int32, device=q.device)
    if not requires_backward:
        peak, inverse = peak.new_empty(0), inverse.new_empty(0)
    return out, peak, inverse, seed


@kernel(
    "sdpa_fwd(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, "
    "bool is_causal, str softmax_mode, Tensor? valid_seq_len, str seq_padding_type) "
    "-> (Tensor, Tensor, Tensor)"
)
def sdpa_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    softmax_mode: str,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, mask, softmax_mode)
    if p != 0.0:
        raise RuntimeError("dropout is for training, which is not emulated")
    hidden = _hidden(q.shape[2], k, is_causal, valid_seq_len, seq_padding_type, None)
    out, probabilities, _, _ = attend(q, k, v, mask, scale, hidden, softmax_mode)
    return out, probabilities.to(q.dtype), torch.empty(0, dtype=torch.uint8, device=q.device)
