"""Fused attention over fp8 operands, with an fp8 softmax between its two products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from hpu_emulator.ops.attention import Attended, Attention, inverse_dtype, prepare_and_attend
from hpu_emulator.ops.fp8 import E4M3, FP8, Scale, apply_scale, decode, encode, scale_tensor, widen
from hpu_emulator.ops.library import kernel
from torch import Tensor

_BEGIN: Final = (
    "Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, bool is_causal, "
)
_TENSORS: Final = (
    "Tensor? d_scale_q, Tensor? d_scale_k, Tensor? d_scale_v, Tensor? q_scale_s, "
    "Tensor? q_scale_o, Tensor? d_scale_s"
)
_FLOATS: Final = _TENSORS.replace("Tensor?", "float")


@dataclass(frozen=True, slots=True)
class Scales:
    """d_*: from fp8 to the real value. q_*: from the real value to fp8."""

    d_q: Scale
    d_k: Scale
    d_v: Scale
    q_s: Scale
    q_o: Scale
    d_s: Scale


@dataclass(frozen=True, slots=True)
class Result:
    out: Tensor
    attended: Attended
    amax_s: Tensor
    amax_o: Tensor


def _largest(tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        return torch.zeros(1, dtype=torch.float32, device=tensor.device)
    return tensor.abs().amax().float().reshape(1)


def _run(q: Tensor, k: Tensor, v: Tensor, asked: Attention, scales: Scales) -> Result:
    dtypes = {q.dtype, k.dtype, v.dtype}
    is_fp8 = q.dtype in FP8
    if len(dtypes) > 1 or not (is_fp8 or q.dtype in (torch.bfloat16, torch.float32)):
        raise RuntimeError(
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: all of one fp8 type, all bfloat16 "
            "or all float32 is needed"
        )
    asked.check(q, k, v)
    amax: list[Tensor] = []

    def through_fp8(probabilities: Tensor) -> Tensor:
        amax.append(_largest(probabilities))
        if not is_fp8:
            return probabilities
        factor = scale_tensor(scales.q_s, q)
        narrow = encode(apply_scale(probabilities, factor), q.dtype)
        return apply_scale(decode(narrow), scale_tensor(scales.d_s, q))

    asked = replace(asked, treat=through_fp8)
    pairs = ((q, scales.d_q), (k, scales.d_k), (v, scales.d_v))
    wide = [apply_scale(widen(given), scale_tensor(scale, q)) for given, scale in pairs]
    statistics = torch.bfloat16 if is_fp8 else q.dtype
    found = prepare_and_attend((q, k, v), (wide[0], wide[1], wide[2]), asked, statistics)
    amax_o = _largest(found.out)
    if scales.q_o is None:
        out = found.out.to(torch.bfloat16 if is_fp8 else q.dtype)
    else:
        scaled = apply_scale(found.out, scale_tensor(scales.q_o, q))
        out = encode(scaled, q.dtype if is_fp8 else E4M3)
    return Result(out, found, amax[0], amax_o)


def _if_asked(amax: Tensor, is_asked: bool) -> Tensor:
    return amax if is_asked else torch.zeros_like(amax)


def fp8_sdpa_recomp_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    requires_backward: bool,
    softmax_mode: str,
    d_scale_q: Scale,
    d_scale_k: Scale,
    d_scale_v: Scale,
    q_scale_s: Scale,
    q_scale_o: Scale,
    d_scale_s: Scale,
    is_amax_s: bool,
    is_amax_o: bool,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, ...]:
    """(output, row maxima, inverse row sums, seed, amax of the softmax, amax of the output).

    The output is fp8 if q_scale_o is given, else bfloat16 for fp8 operands. An amax is [1], and
    0 if it is not asked for.
    """
    asked = Attention(mask, p, scale, is_causal, softmax_mode, valid_seq_len, seq_padding_type)
    scales = Scales(d_scale_q, d_scale_k, d_scale_v, q_scale_s, q_scale_o, d_scale_s)
    result = _run(q, k, v, asked, scales)
    peak = result.attended.peak.to(torch.bfloat16 if q.dtype in FP8 else q.dtype)
    inverse = result.attended.inverse.to(inverse_dtype(softmax_mode, q.dtype))
    if not requires_backward:
        peak, inverse = peak.new_empty(0), inverse.new_empty(0)
    seed = torch.empty(0, dtype=torch.int32, device=q.device)
    amax_s, amax_o = _if_asked(result.amax_s, is_amax_s), _if_asked(result.amax_o, is_amax_o)
    return result.out, peak, inverse, seed, amax_s, amax_o


for _overload, _scales in (("", _TENSORS), (".scalar", _FLOATS)):
    kernel(
        f"fp8_sdpa_recomp_fwd{_overload}({_BEGIN}bool requires_backward, str softmax_mode, "
        f"{_scales}, bool is_amax_s, bool is_amax_o, Tensor? valid_seq_len, str seq_padding_type) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )(fp8_sdpa_recomp_fwd)


@kernel(
    f"fp8_sdpa_fwd({_BEGIN}str softmax_mode, {_TENSORS}, bool is_amax_s, Tensor? valid_seq_len, "
    "str seq_padding_type) -> (Tensor, Tensor, Tensor, Tensor)"
)
def fp8_sdpa_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    softmax_mode: str,
    d_scale_q: Tensor | None,
    d_scale_k: Tensor | None,
    d_scale_v: Tensor | None,
    q_scale_s: Tensor | None,
    q_scale_o: Tensor | None,
    d_scale_s: Tensor | None,
    is_amax_s: bool,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, ...]:
    """(output, probabilities in q's type, dropout mask: empty, amax of the softmax)."""
    asked = Attention(mask, p, scale, is_causal, softmax_mode, valid_seq_len, seq_padding_type)
    scales = Scales(d_scale_q, d_scale_k, d_scale_v, q_scale_s, q_scale_o, d_scale_s)
    result = _run(q, k, v, asked, scales)
    probabilities = result.attended.probabilities
    if q.dtype in FP8:
        factor = scale_tensor(d_scale_s, q)
        codes = probabilities if factor is None else probabilities / factor
        kept = encode(codes, q.dtype)
    else:
        kept = probabilities.to(q.dtype)
    no_dropout = torch.empty(0, dtype=torch.int8, device=q.device)
    return result.out, kept, no_dropout, _if_asked(result.amax_s, is_amax_s)
