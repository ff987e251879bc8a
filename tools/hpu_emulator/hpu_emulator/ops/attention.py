"""Fused scaled-dot-product attention.

q is [B, H, T, D], k and v [B, K, S, D] with K dividing H; or grouped, as habana_frameworks' helpers
give them: q [B, K, G, T, D], k and v [B, K, 1, S, D]. Masks are [T, S], [B or 1, H or 1, T, S], or
grouped too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from hpu_emulator.ops.fp8 import FP8
from hpu_emulator.ops.library import kernel
from torch import Tensor

SOFTMAX_MODES: Final = ("none", "fast", "fp32")
_WIDE: Final = (torch.float32, torch.bfloat16, torch.float16)


def _keep(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Attention:
    """What every op of this family is asked for."""

    mask: Tensor | None
    dropout: float
    scale: float
    is_causal: bool
    softmax_mode: str
    valid_seq_len: Tensor | None
    padding: str
    window: Sequence[int] | None = None
    sink: Tensor | None = None
    # What becomes of the probabilities, float32, before the values are weighted by them.
    treat: Callable[[Tensor], Tensor] = _keep

    @property
    def mode(self) -> str:
        return self.softmax_mode.lower()

    def check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if len({q.dim(), k.dim(), v.dim()}) > 1 or q.dim() not in (4, 5):
            raise RuntimeError(
                f"q, k and v are [B, H, S, D], or grouped [B, K, G, S, D]; "
                f"got {q.dim()}, {k.dim()}, {v.dim()} dimensions"
            )
        if self.dropout != 0.0:
            raise RuntimeError("dropout is for training, which is not emulated")
        if self.mode not in SOFTMAX_MODES:
            known = ", ".join(SOFTMAX_MODES)
            raise RuntimeError(f"softmax_mode {self.softmax_mode!r}: one of {known} is needed")
        if self.mode == "fp32" and q.dtype not in (torch.bfloat16, *FP8):
            raise RuntimeError(f"softmax_mode 'fp32' is for bfloat16, not for {q.dtype}")
        if self.is_causal and self.mask is not None:
            raise RuntimeError("is_causal together with a mask is not supported")
        if self.valid_seq_len is not None:
            self._check_lengths(self.valid_seq_len, q)
        if self.window is not None and len(self.window) != 2:
            raise RuntimeError(f"window_size {list(self.window)}: (left, right) is needed")

    def _check_lengths(self, lengths: Tensor, q: Tensor) -> None:
        if not self.is_causal or self.mask is not None:
            raise RuntimeError("valid_seq_len needs is_causal and no mask")
        if self.padding not in ("left", "right"):
            raise RuntimeError(f"seq_padding_type {self.padding!r}: 'left' or 'right' is needed")
        if lengths.shape != (q.shape[0],) or lengths.dtype != torch.int32:
            raise RuntimeError(
                f"valid_seq_len is {lengths.dtype} {tuple(lengths.shape)}: "
                f"torch.int32 ({q.shape[0]},) is needed"
            )


@dataclass(frozen=True, slots=True)
class Attended:
    """float32, but for what the softmax mode rounds."""

    out: Tensor
    probabilities: Tensor
    peak: Tensor  # row maxima [..., T, 1]
    inverse: Tensor  # inverse row sums [..., T, 1]


def ungroup(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All with four dimensions."""
    if q.dim() == 4:
        return q, k, v
    if k.shape[2] != 1 or v.shape[2] != 1 or k.shape[1] != q.shape[1]:
        raise RuntimeError(f"grouped q {tuple(q.shape)} does not go with k {tuple(k.shape)}")
    return q.flatten(1, 2), k.squeeze(2), v.squeeze(2)


def _mask(mask: Tensor, q: Tensor, k: Tensor, is_grouped: bool) -> Tensor:
    if mask.dtype not in (torch.bool, *_WIDE):
        raise RuntimeError(f"mask is {mask.dtype}: bool (True keeps) or floating point is needed")
    if mask.dim() == 5 and is_grouped:
        if mask.shape[1:3] != (1, 1):
            mask = mask.expand(-1, k.shape[1], q.shape[1] // k.shape[1], -1, -1)
        mask = mask.flatten(1, 2)
    if mask.dim() == 2:
        mask = mask.view(1, 1, *mask.shape)
    fits = (
        mask.dim() == 4
        and mask.shape[0] in (1, q.shape[0])
        and mask.shape[1] in (1, q.shape[1])
        and mask.shape[2] in (1, q.shape[2])
        and mask.shape[3] == k.shape[2]
    )
    if not fits:
        raise RuntimeError(
            f"mask {tuple(mask.shape)} does not fit [B, H, T, S] = "
            f"{(*q.shape[:3], k.shape[2])}: B, H and T may be 1"
        )
    return mask


def _hidden(q: Tensor, k: Tensor, asked: Attention) -> Tensor | None:
    """[B or 1, 1, T, S], True where a query does not see a key; None: all see all."""
    num_keys = k.shape[2]
    query = torch.arange(q.shape[2], device=k.device).unsqueeze(1)
    key = torch.arange(num_keys, device=k.device).unsqueeze(0)
    hidden: Tensor | None = key > query if asked.is_causal else None
    if asked.window is not None:
        left, right = asked.window
        for limit, beyond in ((left, key < query - left), (right, key > query + right)):
            if limit >= 0:
                hidden = beyond if hidden is None else hidden | beyond
    if hidden is not None:
        hidden = hidden.view(1, 1, *hidden.shape)
    if asked.valid_seq_len is not None and hidden is not None:
        length = asked.valid_seq_len.view(-1, 1, 1, 1)
        is_right = asked.padding == "right"
        hidden = hidden | (key >= length if is_right else key < num_keys - length)
    return hidden


def attend(q: Tensor, k: Tensor, v: Tensor, asked: Attention, statistics: torch.dtype) -> Attended:
    """q, k and v in float32, ungrouped. Row maxima are taken in the dtype `statistics`."""
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] or k.shape[:3] != v.shape[:3]:
        raise RuntimeError(
            f"{q.shape[1]} query heads for keys {tuple(k.shape)} and values {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise RuntimeError(f"queries {tuple(q.shape)} for keys {tuple(k.shape)}")
    group = q.shape[1] // k.shape[1]
    # One product per KV head: queries of its group are rows of one matrix.
    folded = q.unflatten(1, (k.shape[1], group)).flatten(2, 3)
    scores = torch.matmul(folded, k.mT) * asked.scale
    scores = scores.unflatten(2, (group, q.shape[2])).flatten(1, 2)
    if asked.mask is not None:
        is_kept = asked.mask.dtype == torch.bool
        scores = (
            scores.masked_fill(~asked.mask, -torch.inf) if is_kept else scores + asked.mask.float()
        )
    hidden = _hidden(q, k, asked)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    probabilities, peak, inverse = _softmax(scores, asked.sink, statistics)
    weights = asked.treat(probabilities)
    if asked.mode == "fast" and statistics != torch.float32:
        # The hardware's fast softmax keeps no more than the inputs' precision.
        weights = weights.to(statistics).float()
    out = torch.matmul(weights.unflatten(1, (k.shape[1], group)).flatten(2, 3), v)
    return Attended(out.unflatten(2, (group, q.shape[2])).flatten(1, 2), weights, peak, inverse)


def _softmax(
    scores: Tensor, sink: Tensor | None, statistics: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(probabilities, row maxima, inverse row sums); a row that sees nothing has zeros."""
    if scores.shape[-1] == 0:
        shape = (*scores.shape[:-1], 1)
        return scores, scores.new_zeros(shape), scores.new_zeros(shape)
    peak = scores.amax(dim=-1, keepdim=True)
    if sink is not None:
        if sink.numel() != scores.shape[1]:
            raise RuntimeError(f"{sink.numel()} sinks for {scores.shape[1]} heads")
        sink = sink.float().view(1, -1, 1, 1)
        peak = torch.maximum(peak, sink)
    # Who merges pieces of a softmax needs sums that belong to the maxima as they are handed out.
    peak = peak.to(statistics).float().masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - peak)
    inverse = torch.where(total > 0, total.reciprocal(), 0.0)
    return weights * inverse, peak, inverse


def _run(q: Tensor, k: Tensor, v: Tensor, asked: Attention) -> Attended:
    asked.check(q, k, v)
    if q.dtype not in _WIDE or k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError(
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: "
            "all float32, all bfloat16 or all float16 is needed"
        )
    return prepare_and_attend((q, k, v), (q.float(), k.float(), v.float()), asked, q.dtype)


def prepare_and_attend(
    given: tuple[Tensor, Tensor, Tensor],
    wide: tuple[Tensor, Tensor, Tensor],
    asked: Attention,
    statistics: torch.dtype,
) -> Attended:
    """`wide` are the real values of what was given; results are grouped where that was."""
    q, k, v = ungroup(*wide)
    is_grouped = given[0].dim() == 5
    if asked.mask is not None:
        asked = replace(asked, mask=_mask(asked.mask, q, k, is_grouped))
    found = attend(q, k, v, asked, statistics)
    if not is_grouped:
        return found
    heads = given[0].shape[1:3]
    fields = (found.out, found.probabilities, found.peak, found.inverse)
    return Attended(*(field.unflatten(1, heads) for field in fields))


def inverse_dtype(mode: str, dtype: torch.dtype) -> torch.dtype:
    is_narrow = dtype in FP8 or (mode.lower() == "fast" and dtype == torch.bfloat16)
    return torch.bfloat16 if is_narrow else torch.float32


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
    """(output, row maxima, inverse row sums, seed); maxima and sums are for a backward pass."""
    asked = Attention(
        mask, p, scale, is_causal, softmax_mode, valid_seq_len, seq_padding_type, window_size, sink
    )
    found = _run(q, k, v, asked)
    seed = torch.empty(0, dtype=torch.int32, device=q.device)
    peak = found.peak.to(q.dtype)
    inverse = found.inverse.to(inverse_dtype(softmax_mode, q.dtype))
    if not requires_backward:
        peak, inverse = peak.new_empty(0), inverse.new_empty(0)
    return found.out.to(q.dtype), peak, inverse, seed


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
    """(output, probabilities, dropout mask: empty)."""
    asked = Attention(mask, p, scale, is_causal, softmax_mode, valid_seq_len, seq_padding_type)
    found = _run(q, k, v, asked)
    no_dropout = torch.empty(0, dtype=torch.int8, device=q.device)
    return found.out.to(q.dtype), found.probabilities.to(q.dtype), no_dropout
