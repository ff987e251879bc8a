"""Fused attention, in floating point and in fp8. Run in a process that has the device."""

from __future__ import annotations

import math

import pytest
import torch
from habana_frameworks.torch.hpex.kernels import Fp8FusedSDPA as fp8_module
from habana_frameworks.torch.hpex.kernels import FusedSDPA, PySDPA, PySDPAHinted, fp8_fused_sdpa
from habana_frameworks.torch.hpex.kernels.FusedSDPA import (
    gqa_input_reshape_fwd,
    gqa_output_reshape,
    is_gqa,
)
from hpu_emulator.runtime import SETTINGS

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
E4M3 = torch.float8_e4m3fn
# B, H, K, T, S, D
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 4, 2, 5, 7, 8), (1, 6, 1, 3, 3, 16), (3, 3, 3, 1, 9, 5)]
EMPTY = [(0, 2, 1, 3, 3, 4), (1, 2, 2, 0, 3, 4), (2, 2, 1, 3, 0, 4)]


def operands(shape, dtype=torch.float32):
    b, h, k, t, s, d = shape
    torch.manual_seed(b + 10 * t + 100 * s)
    sizes = ((b, h, t, d), (b, k, s, d), (b, k, s, d))
    return tuple(torch.randn(size).to(dtype) for size in sizes)


def visible(shape, causal=False, window=None, lengths=None, side="right"):
    """Bool [B, T, S], entry by entry."""
    b, _, _, t, s, _ = shape
    seen = torch.ones(b, t, s, dtype=torch.bool)
    for row in range(b):
        for i in range(t):
            for j in range(s):
                ok = not causal or j <= i
                if window is not None:
                    ok &= window[0] < 0 or j >= i - window[0]
                    ok &= window[1] < 0 or j <= i + window[1]
                if lengths is not None:
                    real = int(lengths[row])
                    ok &= j < real if side == "right" else j >= s - real
                seen[row, i, j] = ok
    return seen


def attention(q, k, v, scale, seen=None, bias=None, sink=None):
    """(output, probabilities) head by head in float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    weights = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = q[row, head] @ k[row, head // group].T * scale
            if bias is not None:
                scores = scores + bias.double().expand(*weights.shape)[row, head]
            if seen is not None:
                scores = scores.masked_fill(~seen[row], -torch.inf)
            total = torch.exp(scores).sum(-1, keepdim=True)
            if sink is not None:
                total = total + math.exp(float(sink[head]))
            weights[row, head] = torch.where(total > 0, torch.exp(scores) / total, 0.0)
    return weights @ v.repeat_interleave(group, 1), weights


def recompute(q, k, v, mask=None, scale=None, causal=False, stats=True, mode="none", lengths=None,
              side="right", window=None, sink=None):  # fmt: skip
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
    args = (q, k, v, mask, 0.0, scale, causal, stats, mode, lengths, side, window, sink)
    return everywhere(hpu.sdpa_recomp_fwd, *args)


@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("none", torch.float32),
        ("fast", torch.float32),
        ("None", torch.bfloat16),
        ("fast", torch.bfloat16),
        ("fp32", torch.bfloat16),
        ("none", torch.float16),
    ],
)
def test_plain_attention_matches_float64(shape, mode, dtype):
    q, k, v = operands(shape, dtype)
    out, peak, inverse, seed = recompute(q, k, v, mode=mode)
    wanted, _ = attention(q, k, v, 1 / math.sqrt(shape[-1]))
    assert_near(out, wanted, 2.0)
    assert out.dtype == peak.dtype == dtype
    is_fast_bf16 = mode == "fast" and dtype == torch.bfloat16
    assert inverse.dtype == (torch.bfloat16 if is_fast_bf16 else torch.float32)
    assert peak.shape == inverse.shape == (*q.shape[:3], 1)
    assert seed.dtype == torch.int32
    assert [x.numel() for x in recompute(q, k, v, mode=mode, stats=False)[1:3]] == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, (0, 0), (2, 0), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("causal", [False, True])
def test_windows_and_causality_hide_keys(shape, window, causal):
    q, k, v = operands(shape)
    out = recompute(q, k, v, causal=causal, window=window, scale=0.7)[0]
    wanted, _ = attention(q, k, v, 0.7, visible(shape, causal, window))
    assert_near(out, wanted, 2.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(0, 6), (6, 1), (3, 4)])
def test_valid_lengths_hide_padding_on_either_side(side, lengths):
    shape = (2, 4, 2, 6, 6, 8)
    q, k, v = operands(shape)
    real = torch.tensor(lengths, dtype=torch.int32)
    out = recompute(q, k, v, causal=True, lengths=real, side=side)[0]
    seen = visible(shape, True, None, real, side)
    wanted, _ = attention(q, k, v, 1 / math.sqrt(8), seen)
    assert_near(out, wanted, 2.0)


@pytest.mark.parametrize("size", [(5, 7), (1, 1, 5, 7), (2, 1, 5, 7), (2, 4, 5, 7), (1, 4, 5, 7)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.bfloat16])
def test_masks_add_or_keep(size, kind):
    shape = SHAPES[1]
    q, k, v = operands(shape)
    kept = torch.rand(size) > 0.3
    bias = torch.where(kept, 0.0, -torch.inf)
    mask = kept if kind == torch.bool else bias.to(kind)
    wanted, weights = attention(q, k, v, 0.5, None, bias)
    assert_near(recompute(q, k, v, mask, 0.5)[0], wanted, 2.0)
    out, probabilities, dropout = everywhere(
        hpu.sdpa_fwd, q, k, v, mask, 0.0, 0.5, False, "none", None, "left"
    )
    assert_near(out, wanted, 2.0)
    assert_near(probabilities, weights)
    assert (dropout.dtype, dropout.numel()) == (torch.int8, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_take_their_share(dtype):
    shape = SHAPES[1]
    q, k, v = operands(shape, dtype)
    sink = torch.tensor([-30.0, 0.0, 1.0, 4.0])
    out = recompute(q, k, v, causal=True, sink=sink, scale=0.3)[0]
    wanted, _ = attention(q, k, v, 0.3, visible(shape, True), None, sink)
    assert_near(out, wanted, 2.0)


@pytest.mark.parametrize("mode", ["none", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_merge_by_their_statistics(mode, dtype):
    """With maxima in bfloat16 too: sums belong to the maxima as they are given."""
    q, k, v = operands((1, 4, 2, 5, 12, 16))
    # Scores near 190, which bfloat16 knows to the next integer, and of about the same size.
    q, k, v = ((q * 0.1 + 1) * 6).to(dtype), (k * 0.05 + 2).to(dtype), v.to(dtype)
    pieces = [recompute(q, k[:, :, cut], v[:, :, cut], mode=mode, scale=1.0)
              for cut in (slice(0, 5), slice(5, 12))]  # fmt: skip
    peak = torch.maximum(pieces[0][1].double(), pieces[1][1].double())
    sums = [torch.exp(m.double() - peak) / linv.double() for _, m, linv, _ in pieces]
    merged = sum(out.double() * s for (out, *_), s in zip(pieces, sums, strict=True))
    wanted, _ = attention(q, k, v, 1.0)
    assert_near(
        (merged / (sums[0] + sums[1])).to(dtype), wanted, 3.0 if dtype.itemsize < 4 else 30.0
    )


@pytest.mark.parametrize("mask_heads", [None, 1, 4])
def test_grouped_heads_give_what_ungrouped_ones_give(mask_heads):
    q, k, v = operands(SHAPES[1])
    mask = None if mask_heads is None else torch.randn(2, mask_heads, 5, 7)
    assert is_gqa(q, k) and not is_gqa(q, k[:, :1]) and not is_gqa(k, k)
    plain = recompute(q, k, v, mask)
    grouped = recompute(*gqa_input_reshape_fwd(q, k, v, mask))
    assert grouped[0].shape == (2, 2, 2, 5, 8)
    for ours, theirs in zip(plain[:3], grouped[:3], strict=True):
        assert torch.equal(gqa_output_reshape(theirs), ours)
    assert fp8_module is not None


def on_device(*tensors):
    return tuple(None if t is None else t.to("hpu") for t in tensors)


@pytest.mark.parametrize("recompute_mode", [None, False, True])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_the_autograd_function_takes_positional_arguments(recompute_mode, num_queries):
    shape = (2, 4, 2, num_queries, 7, 8)
    q, k, v = operands(shape)
    wanted, weights = attention(q, k, v, 1 / math.sqrt(8))
    args = (None, 0.0, False, None, "None", recompute_mode)
    assert_near(FusedSDPA.apply(*on_device(q, k, v), *args).cpu(), wanted, 2.0)
    assert_near(FusedSDPA.apply(*on_device(q, k, v)).cpu(), wanted, 2.0)
    rest = (None, "left", False, True)
    out, probabilities = FusedSDPA.apply(*on_device(q, k, v), *args, *rest)
    assert_near(out.cpu(), wanted, 2.0)
    assert_near(probabilities.cpu(), weights)
    with pytest.raises(TypeError):
        FusedSDPA.apply(*on_device(q, k, v), softmax_mode="fast")
    if recompute_mode is False and num_queries > 1:
        with pytest.raises(RuntimeError, match="need recompute_mode"):
            FusedSDPA.apply(*on_device(q, k, v), *args, None, "left", False, False, (3, 0))


def test_attention_composed_of_single_ops_is_the_same():
    q, k, v = operands((2, 3, 3, 6, 6, 8))
    for causal in (False, True):
        seen = visible((2, 3, 3, 6, 6, 8), causal)
        wanted, _ = attention(q, k, v, 1 / math.sqrt(8), seen)
        for kernel in (PySDPA, PySDPAHinted):
            assert_near(kernel.apply(*on_device(q, k, v), causal, True).cpu(), wanted, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "quick"}, "softmax_mode 'quick'"),
        ({"mode": "fp32"}, "is for bfloat16"),
        ({"causal": True, "mask": torch.zeros(5, 7)}, "together with a mask"),
        ({"mask": torch.zeros(5, 7, dtype=torch.int32)}, "mask is torch.int32"),
        ({"mask": torch.zeros(5, 6)}, "does not fit"),
        ({"mask": torch.zeros(3, 1, 5, 7)}, "does not fit"),
        ({"mask": torch.zeros(2, 5, 7)}, "does not fit"),
        ({"lengths": torch.tensor([1, 2], dtype=torch.int32)}, "needs is_causal"),
        ({"lengths": torch.tensor([1, 2]), "causal": True}, "torch.int32"),
        ({"lengths": torch.tensor([1], dtype=torch.int32), "causal": True}, r"\(2,\)"),
        ({"window": [1]}, "window_size"),
        ({"sink": torch.zeros(3)}, "3 sinks for 4 heads"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    q, k, v = operands(SHAPES[1])
    with pytest.raises(RuntimeError, match=message):
        recompute(q, k, v, **change)


def test_wrong_operands_are_named():
    q, k, v = operands(SHAPES[1])
    for wrong, message in (
        ((q[:, :3], k, v), "3 query heads"),
        ((q[0], k[0], v[0]), "3 dimensions|3, 3, 3"),
        ((q.bfloat16(), k, v), "all bfloat16"),
        ((q.double(), k.double(), v.double()), "all float32"),
        ((q[..., :4], k, v), "for keys"),
        ((q[:1], k, v), "for keys"),
    ):
        with pytest.raises(RuntimeError, match=message):
            recompute(*wrong)
    with pytest.raises(RuntimeError, match="dropout"):
        hpu.sdpa_recomp_fwd(q, k, v, None, 0.1, 1.0, False, False, "none", None, "left")
    lengths = torch.tensor([1, 2], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="seq_padding_type 'both'"):
        hpu.sdpa_recomp_fwd(q, k, v, None, 0.0, 1.0, True, False, "none", lengths, "both")


# --- fp8 ---


def to_fp8(x, scale=1.0):
    full = SETTINGS.generation.fp8_max
    return (x.float() * scale).clamp(-full, full).to(E4M3)


@pytest.mark.parametrize("shape", [*SHAPES, EMPTY[0]])
@pytest.mark.parametrize(
    ("kind", "has_output_scale"), [("tensors", False), ("tensors", True), ("floats", True)]
)
def test_fp8_attention_is_near_that_of_the_real_values(shape, kind, has_output_scale):
    q, k, v = operands(shape)
    codes = [to_fp8(x, s) for x, s in zip((q, k, v), (4.0, 8.0, 16.0), strict=True)]
    real = [c.float() / s for c, s in zip(codes, (4.0, 8.0, 16.0), strict=True)]
    given = [1 / 4, 1 / 8, 1 / 16, 128.0, 32.0 if has_output_scale else None, 1 / 128]
    if kind == "tensors":
        given = [None if s is None else torch.tensor(s) for s in given]
    scale = 1 / math.sqrt(shape[-1])
    args = (*codes, None, 0.0, scale, False, True, "none", *given, True, True, None, "right")
    out, peak, inverse, seed, amax_s, amax_o = everywhere(hpu.fp8_sdpa_recomp_fwd, *args)
    wanted, weights = attention(*real, scale)
    assert out.dtype == (E4M3 if has_output_scale else torch.bfloat16)
    assert peak.dtype == inverse.dtype == torch.bfloat16 and seed.dtype == torch.int32
    found = out.float() / (32.0 if has_output_scale else 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=0.1, atol=0.1)
    if wanted.numel():
        assert amax_s.item() == pytest.approx(weights.max().item(), rel=1e-2)
        assert amax_o.item() == pytest.approx(wanted.abs().max().item(), rel=0.1)
    silent = (*args[:-4], False, False, None, "right")
    assert all(x.tolist() == [0.0] for x in everywhere(hpu.fp8_sdpa_recomp_fwd, *silent)[4:])


def test_fp8_softmax_saturates_at_the_largest_number_of_the_generation():
    q = torch.zeros(1, 1, 1, 4).to(E4M3)
    v = torch.ones(1, 1, 1, 4).to(E4M3)
    scales = [None, None, None, torch.tensor(1000.0), None, None]
    args = (q, q, v, None, 0.0, 1.0, False, False, "none", *scales, False, False, None, "left")
    out = everywhere(hpu.fp8_sdpa_recomp_fwd, *args)[0]
    assert out.flatten().tolist() == [SETTINGS.generation.fp8_max] * 4


@pytest.mark.parametrize("recompute_mode", [None, False, True])
def test_the_fp8_function_measures_and_quantises(recompute_mode):
    q, k, v = operands((2, 4, 2, 5, 5, 8), torch.bfloat16)
    wanted, weights = attention(q, k, v, 1 / math.sqrt(8), visible((2, 4, 2, 5, 5, 8), True))
    options = {"is_causal": True, "softmax_mode": "fast", "recompute": recompute_mode}
    out, amax_s, _ = fp8_fused_sdpa(*on_device(q, k, v), is_amax_s=True, **options)
    assert_near(out.cpu(), wanted, 2.0)
    assert amax_s.item() == pytest.approx(weights.max().item(), rel=1e-2)
    one = torch.ones(()).to("hpu")
    codes = on_device(*(to_fp8(x) for x in (q, k, v)))
    scaled = fp8_fused_sdpa(
        *codes, d_scale_q=one, d_scale_k=one, d_scale_v=one, q_scale_s=one, d_scale_s=one, **options
    )[0]
    assert scaled.dtype == torch.bfloat16
    torch.testing.assert_close(scaled.cpu().double(), wanted, rtol=0.2, atol=0.2)
    names = ("d_scale_q", "d_scale_k", "d_scale_v", "q_scale_s", "q_scale_o", "d_scale_s")
    floats = fp8_fused_sdpa(*codes, **dict.fromkeys(names, 1.0), **options)[0]
    assert floats.dtype == E4M3
    with pytest.raises(TypeError, match="all floats"):
        fp8_fused_sdpa(*codes, d_scale_q=1.0, d_scale_k=one, **options)


def test_fp8_attention_names_wrong_operands():
    q, k, v = operands(SHAPES[1])
    none = [None] * 6
    rest = (None, 0.0, 1.0, False, False, "none", *none, False, False, None, "left")
    with pytest.raises(RuntimeError, match="all of one fp8 type"):
        hpu.fp8_sdpa_recomp_fwd(to_fp8(q), k, v, *rest)
    with pytest.raises(RuntimeError, match="all of one fp8 type"):
        hpu.fp8_sdpa_recomp_fwd(q.half(), k.half(), v.half(), *rest)
