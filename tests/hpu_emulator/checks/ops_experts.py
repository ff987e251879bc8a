"""Mixture of experts. Run in a process that has the device."""

from __future__ import annotations

import math

import pytest
import torch
from hpu_emulator.ops.library import CompileFailed
from hpu_emulator.runtime import SETTINGS

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

moe = torch.ops.hpu.mixture_of_experts
E4M3 = torch.float8_e4m3fn
# Tokens, hidden size, inner size, experts per token, first and last expert here of six
SIZES = [(1, 1, 1, 1, 0, 5), (5, 8, 6, 2, 0, 5), (7, 4, 3, 3, 2, 3), (0, 4, 2, 2, 0, 5)]
NUM_EXPERTS = 6
ACTIVATIONS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def routed(sizes, dtype):
    t, h, _, k, _, _ = sizes
    torch.manual_seed(t)
    ids = [torch.randperm(NUM_EXPERTS)[:k] for _ in range(t)]
    table = torch.stack(ids) if ids else torch.zeros(0, k, dtype=torch.int64)
    return torch.randn(t, h).to(dtype), table, torch.rand(t, k).to(dtype)


def weights(sizes, dtype=torch.float32, biased=False):
    """w1, w2 [F, H], w3 [H, F] of each expert here, and biases of w12 and w3."""
    _, h, f, _, first, last = sizes
    torch.manual_seed(first + 7)
    count = last - first + 1
    found = [
        [torch.randn(size).to(dtype) for _ in range(count)] for size in ((f, h), (f, h), (h, f))
    ]
    if biased:
        found += [[torch.randn(size).to(dtype) for _ in range(count)] for size in (2 * f, h)]
    return found


def laid_out(matrices, permuted):
    return [w if permuted else w.T.contiguous() for w in matrices]


def fused(w1, w2, permuted):
    both = (torch.cat(pair, 0 if permuted else 1) for pair in zip(w1, w2, strict=True))
    return list(both)


def interleaved(w1, w2):
    return [torch.stack(pair, 1).flatten(0, 1) for pair in zip(w1, w2, strict=True)]


def expected(x, table, router, first, last, expert):
    """(result, largest inner activation of each expert), token by token in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    maxima = torch.zeros(last - first + 1, dtype=torch.float64)
    for token in range(x.shape[0]):
        for choice, share in zip(table[token].tolist(), router[token].tolist(), strict=True):
            if first <= choice <= last:
                result, inner = expert(choice - first, x[token].double())
                out[token] += share * result
                maxima[choice - first] = max(maxima[choice - first], inner.abs().max())
    return out, maxima


def gated(w1, w2, w3, act):
    def expert(i, row):
        inner = ACTIVATIONS[act](w1[i].double() @ row) * (w2[i].double() @ row)
        return w3[i].double() @ inner, inner

    return expert


def clamped(w1, w2, w3, bias, bias3, alpha=1.702, limit=7.0):
    def expert(i, row):
        both = bias[i].double()
        gate = (w1[i].double() @ row + both[0::2]).clamp(max=limit)
        up = (w2[i].double() @ row + both[1::2]).clamp(-limit, limit)
        inner = (up + 1) * gate / (1 + torch.exp(-alpha * gate))
        return w3[i].double() @ inner + bias3[i].double(), inner

    return expert


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_experts_match_float64(sizes, dtype, permuted, act):
    x, table, router = routed(sizes, dtype)
    w1, w2, w3 = weights(sizes, dtype)
    first, last = sizes[4:]
    wanted, maxima = expected(x, table, router, first, last, gated(w1, w2, w3, act))
    a, b, c = (laid_out(w, permuted) for w in (w1, w2, w3))
    place = (permuted, act, first, last)
    scale = 40.0 if dtype == torch.bfloat16 else 20.0
    separate = everywhere(moe.default, x, table, router, a, b, c, *place)
    both = fused(a, b, permuted)
    together = everywhere(moe.fused_weights, x, table, router, both, c, *place)
    sliced = everywhere(
        moe.fused_weights, x, table, router, both, c, *place, chunk_size=64, total_experts=6
    )
    assert separate.dtype == dtype
    assert_near(separate, wanted, scale)
    assert_near(together, wanted, scale)
    assert torch.equal(sliced, together)
    for op, lists in ((moe.fp8_measurement, (a, b, c)),
                      (moe.fp8_measurement_fused_weights, (both, c))):  # fmt: skip
        out, found = everywhere(op, x, table, router, *lists, *place, True)
        assert_near(out, wanted, scale)
        assert_near(found, maxima, scale)
        assert not everywhere(op, x, table, router, *lists, *place, False)[1].any()


def test_overloads_are_chosen_by_their_keywords():
    sizes = SIZES[1]
    x, table, router = (part.to("hpu") for part in routed(sizes, torch.bfloat16))
    w1, w2, w3 = weights(sizes, torch.bfloat16)
    wanted = expected(x.cpu(), table.cpu(), router.cpu(), 0, 5, gated(w1, w2, w3, "silu"))[0]
    out = moe(
        hidden_states=x, expert_routing_table=table, router_weights=router,
        w12=[w.to("hpu") for w in fused(w1, w2, True)], w3=[w.to("hpu") for w in w3],
        permuted_weights=True, activation="silu", experts_min=0, experts_max=5, chunk_size=4,
    )  # fmt: skip
    assert_near(out.cpu(), wanted, 40.0)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("permuted", [False, True])
def test_clamped_gates_with_biases(sizes, permuted):
    x, table, router = routed(sizes, torch.float32)
    w1, w2, w3, bias, bias3 = weights(sizes, biased=True)
    first, last = sizes[4:]
    lists = (laid_out(interleaved(w1, w2), permuted), laid_out(w3, permuted), bias, bias3)
    place = (permuted, first, last)
    wanted, maxima = expected(x * 4, table, router, first, last, clamped(w1, w2, w3, bias, bias3))
    found = everywhere(moe.bias_fused_weights, x * 4, table, router, *lists, *place)
    assert_near(found, wanted, 100.0)
    out, largest = everywhere(
        moe.measurement_bias_fused_weights, x * 4, table, router, *lists, *place
    )
    assert_near(out, wanted, 100.0)
    assert_near(largest, maxima, 100.0)
    wanted, _ = expected(x, table, router, first, last, clamped(w1, w2, w3, bias, bias3, 1.0, 0.5))
    found = everywhere(
        moe.bias_fused_weights, x, table, router, *lists, *place, alpha=1.0, limit=0.5
    )
    assert_near(found, wanted, 100.0)


def quantised(matrices, per_channel=False):
    """(codes, factors that give the real values back) of each matrix [out, in]."""
    codes, scales = [], []
    for matrix in matrices:
        largest = matrix.abs().amax(1) if per_channel else matrix.abs().amax()
        scale = (largest / SETTINGS.generation.fp8_max).clamp(min=1e-6)
        wide = scale.unsqueeze(1) if per_channel else scale
        codes.append((matrix / wide).to(E4M3))
        scales.append(scale)
    return codes, scales


def real(codes, scales):
    return [c.double() * (s.unsqueeze(1) if s.dim() else s).double()
            for c, s in zip(codes, scales, strict=True)]  # fmt: skip


def assert_alike(found, wanted):
    """As near as an inner fp8 lets it be."""
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    if wanted.numel():
        largest = wanted.abs().max().item()
        torch.testing.assert_close(found.double(), wanted, rtol=0.1, atol=0.05 * largest + 1e-3)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("inner", ["static", "dynamic"])
@pytest.mark.parametrize("form", ["tensors", "channels", "rows", "floats"])
def test_fp8_experts_are_near_those_of_the_real_values(sizes, permuted, inner, form):
    x, table, router = routed(sizes, torch.bfloat16)
    w1, w2, w3 = weights(sizes)
    first, last = sizes[4:]
    # Rows of very different size need scales of their own.
    x = x.float() * (torch.logspace(-1, 1, max(len(x), 1))[: len(x), None] if form == "rows" else 1)
    per_row = form == "rows"
    largest = (
        x.abs().amax(1, keepdim=True) if per_row else x.abs().max() if len(x) else torch.ones(())
    )
    x_scale = (largest / SETTINGS.generation.fp8_max).clamp(min=1e-6).float()
    codes = (x / x_scale).to(E4M3)
    channels = form in ("channels", "rows")
    (a, sa), (b, sb), (c, sc) = (quantised(w, channels) for w in (w1, w2, w3))
    expert = gated(real(a, sa), real(b, sb), real(c, sc), "silu")
    wanted, maxima = expected(codes.double() * x_scale, table, router, first, last, expert)
    # w12 has one scale per matrix or per channel: without channels, both halves share one.
    fused_codes = fused(a, b, True)
    fused_scales = [torch.cat(pair) for pair in zip(sa, sb, strict=True)] if channels else sa
    if not channels:
        shared = gated(real(a, sa), real(b, sa), real(c, sc), "silu")
        wanted_fused, fused_maxima = expected(
            codes.double() * x_scale, table, router, first, last, shared
        )
    else:
        wanted_fused, fused_maxima = wanted, maxima
    for name, matrices, scales, result, peaks in (
        ("fp8", (a, b, c), (sa, sb, sc), wanted, maxima),
        ("fp8_fused_weights", (fused_codes, c), (fused_scales, sc), wanted_fused, fused_maxima),
    ):
        steps = [max(float(p), 1e-3) / SETTINGS.generation.fp8_max for p in peaks]
        between = [[torch.tensor(step) for step in steps]] if inner == "static" else []
        given = [x_scale, *between, *scales]
        if form == "floats":
            given = [float(x_scale), *([steps] if between else []),
                     *([float(s) for s in group] for group in scales)]  # fmt: skip
            name += "_scalars"
        op = getattr(moe, name + ("_dynamic" if inner == "dynamic" else ""))
        lists = [laid_out(m, permuted) for m in matrices]
        place = (permuted, "silu", first, last)
        assert_alike(everywhere(op, codes, table, router, *lists, *given, *place), result)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("is_scalar", [False, True])
def test_fp8_clamped_gates_with_biases(permuted, is_scalar):
    sizes = SIZES[1]
    x, table, router = routed(sizes, torch.bfloat16)
    w1, w2, w3, bias, bias3 = weights(sizes, biased=True)
    codes = x.to(E4M3)
    (w12, s12), (c, sc) = quantised(interleaved(w1, w2)), quantised(w3)
    both = real(w12, s12)
    expert = clamped([w[0::2] for w in both], [w[1::2] for w in both], real(c, sc), bias, bias3)
    wanted, maxima = expected(codes.double(), table, router, 0, 5, expert)
    steps = [max(float(p), 1e-3) / SETTINGS.generation.fp8_max for p in maxima]
    narrow = [[b.bfloat16() for b in group] for group in (bias, bias3)]
    scales = [torch.ones(()), [torch.tensor(s) for s in steps], s12, sc]
    op = moe.bias_fp8_fused_weights
    if is_scalar:
        scales = [1.0, steps, *([float(s) for s in group] for group in (s12, sc))]
        op = moe.bias_fp8_fused_weights_scalars
    lists = (laid_out(w12, permuted), laid_out(c, permuted), *narrow)
    assert_alike(everywhere(op, codes, table, router, *lists, *scales, permuted, 0, 5), wanted)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 128])
def test_blocks_of_weights_have_scales_of_their_own(permuted, size):
    sizes = (5, 8, 6, 2, 1, 4)
    x, table, router = routed(sizes, torch.bfloat16)
    wide, codes, scales = [], [], []
    for group in weights(sizes):
        group_codes, group_scales, group_wide = [], [], []
        for matrix in laid_out(group, permuted):
            rows, columns = (-(-n // size) for n in matrix.shape)
            scale = torch.rand(rows, columns) + 0.5
            full = scale.repeat_interleave(size, 0).repeat_interleave(size, 1)
            narrow = matrix.to(E4M3)
            group_codes.append(narrow)
            group_scales.append(scale)
            value = narrow.double() * full[: matrix.shape[0], : matrix.shape[1]]
            group_wide.append(value if permuted else value.T)
        wide.append(group_wide)
        codes.append(group_codes)
        scales.append(group_scales)
    place = (size, permuted, "silu", 1, 4)
    wanted, _ = expected(x, table, router, 1, 4, gated(*wide, "silu"))
    found = everywhere(moe.fp8_blockwise, x, table, router, *codes, *scales, *place)
    assert_near(found, wanted, 60.0)
    if size == 3:  # the border between the halves is one between blocks
        dim = 0 if permuted else 1
        both, both_scales = (
            [torch.cat(pair, dim) for pair in zip(*lists[:2], strict=True)]
            for lists in (codes, scales)
        )
        found = everywhere(
            moe.fp8_fused_weights_blockwise, x, table, router, both, codes[2], both_scales,
            scales[2], *place,
        )  # fmt: skip
        assert_near(found, wanted, 60.0)


def test_an_expert_chosen_twice_counts_twice():
    x, _, _ = routed(SIZES[1], torch.float32)
    table, router = torch.full((5, 2), 3), torch.full((5, 2), 0.25)
    w1, w2, w3 = weights(SIZES[1])
    wanted, _ = expected(x, table, router, 0, 5, gated(w1, w2, w3, "silu"))
    found = everywhere(moe.default, x, table, router, w1, w2, w3, True, "silu", 0, 5)
    assert_near(found, wanted, 20.0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"router_weights": torch.rand(5, 2)}, CompileFailed, "synStatus 26.*router weights"),
        ({"expert_routing_table": torch.zeros(5, 2, dtype=torch.int32)}, CompileFailed, "int64"),
        ({"activation": "swish"}, RuntimeError, "one of gelu, relu, silu"),
        ({"experts_max": 4}, RuntimeError, "experts 0 to 4"),
        ({"w3": [torch.zeros(8, 6).bfloat16()] * 5}, RuntimeError, "lists of 5, 6 weights"),
        ({"hidden_states": torch.zeros(4, 8).bfloat16()}, RuntimeError, r"\[T, H\]"),
    ],
)
def test_wrong_arguments_are_named(change, kind, message):
    x, table, router = routed(SIZES[1], torch.bfloat16)
    w1, w2, w3 = weights(SIZES[1], torch.bfloat16)
    plain = {
        "hidden_states": x, "expert_routing_table": table, "router_weights": router,
        "w12": fused(w1, w2, True), "w3": w3, "permuted_weights": True, "activation": "silu",
        "experts_min": 0, "experts_max": 5,
    }  # fmt: skip
    with pytest.raises(kind, match=message):
        moe(**{**plain, **change})


def test_wrong_arguments_of_fp8_are_named():
    x, table, router = routed(SIZES[1], torch.bfloat16)
    (a, sa), (b, sb), (c, sc) = (quantised(w) for w in weights(SIZES[1]))
    codes, one, place = x.to(E4M3), torch.ones(()), (True, "silu", 0, 5)
    lists, scales = (a, b, c), (sa, sb, sc)
    dynamic = moe.fp8_dynamic
    for args, kind, message in (
        ((x, table, router, *lists, one, *scales, *place), RuntimeError, "hidden_states is"),
        ((codes, table, router.float(), *lists, one, *scales, *place), CompileFailed, "router"),
        ((codes, table, router, *lists, one, sa, sb, sc[:3], *place), RuntimeError, "6 experts"),
        (
            (codes, table, router, *lists, torch.ones(3, 1), *scales, *place),
            RuntimeError,
            "one per",
        ),
    ):
        with pytest.raises(kind, match=message):
            dynamic(*args)
    blockwise = moe.fp8_blockwise
    with pytest.raises(RuntimeError, match="a matrix per expert"):
        blockwise(x, table, router, *lists, *scales, 4, *place)
    with pytest.raises(RuntimeError, match="in blocks of 4"):
        wrong = [torch.ones(1, 1)] * 6
        blockwise(x, table, router, *lists, wrong, wrong, wrong, 4, *place)
    with pytest.raises(RuntimeError, match="measure_per_token"):
        w1, w2, w3, bias, bias3 = weights(SIZES[1], torch.bfloat16, biased=True)
        args = (x, table, router, interleaved(w1, w2), w3, bias, bias3, True, 0, 5)
        moe.measurement_bias_fused_weights(*args, measure_per_token=True)
