"""Casts, products and softmax of fp8. Run in a process that has the device."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hpu_emulator.runtime import SETTINGS

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FULL = {E4M3: SETTINGS.generation.fp8_max, E5M2: 57344.0}
SHAPES = [(), (1,), (0, 3), (5, 7), (2, 3, 4)]


def numbers(dtype):
    """All finite numbers of a format, ascending, from its definition."""
    smallest, mantissa = (-6, 3) if dtype == E4M3 else (-14, 2)
    found = {0.0}
    for exponent in range(smallest, 16):
        for fraction in range(2**mantissa):
            for base in (1, 0) if exponent == smallest else (1,):
                found.add(math.ldexp(base + fraction / 2**mantissa, exponent))
    positive = sorted(x for x in found if x <= FULL[dtype])
    return [-x for x in reversed(positive[1:])] + positive


def nearest(values, dtype):
    """By distance, ties to the even code."""
    table = torch.tensor(numbers(dtype), dtype=torch.float64)
    flat = values.double().reshape(-1).clamp(-FULL[dtype], FULL[dtype])
    out = []
    zero = len(table) // 2
    for value in flat.tolist():
        distance = (table - value).abs()
        close = (distance == distance.min()).nonzero().flatten().tolist()
        out.append(float(table[min(close, key=lambda i: abs(i - zero) % 2)]))
    return torch.tensor(out, dtype=torch.float64).view(values.shape)


def test_the_table_of_numbers_is_that_of_torch():
    for dtype in (E4M3, E5M2):
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).double()
        known = codes[torch.isfinite(codes) & (codes.abs() <= FULL[dtype])]
        assert sorted(set(known.tolist())) == sorted(set(numbers(dtype)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
@pytest.mark.parametrize("scale", [None, 3.0, torch.tensor(0.5), torch.tensor([0.25])])
def test_casts_round_to_the_nearest_number(shape, dtype, fp8, scale):
    torch.manual_seed(len(shape))
    x = (torch.randn(shape) * 20).to(dtype)
    out, amax = everywhere(hpu.cast_to_fp8_v2, x, scale, False, True, fp8)
    factor = 1.0 if scale is None else float(scale)
    assert out.dtype == fp8
    assert torch.equal(out.double(), nearest(x.double() * factor, fp8))
    assert (amax.dtype, amax.shape) == (torch.float32, ())
    assert amax.item() == (x.abs().max().item() if x.numel() else 0.0)
    assert everywhere(hpu.cast_to_fp8_v2, x, scale, False, False, fp8)[1].numel() == 0


@pytest.mark.parametrize("fp8", [E4M3, E5M2])
def test_casts_round_ties_to_even_and_saturate(fp8):
    table = torch.tensor(numbers(fp8))
    between = (table[:-1] + table[1:]) / 2
    beyond = torch.tensor([FULL[fp8] * 1.01, -1e9, torch.inf, -torch.inf])
    x = torch.cat((table, between, beyond))
    out = everywhere(hpu.cast_to_fp8_v2, x, None, False, False, fp8)[0]
    assert torch.equal(out.double(), nearest(x, fp8))
    assert out[-4:].float().tolist() == [FULL[fp8], -FULL[fp8]] * 2
    nan = hpu.cast_to_fp8_v2(torch.tensor([torch.nan]), None, False, False, fp8)[0]
    assert nan.float().isnan().all()


def test_scales_may_be_per_row_per_column_and_given_with_a_shape():
    x = torch.randn(3, 4)
    rows, columns = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    cast = hpu.cast_to_fp8_v2
    for scale in (rows, columns):
        out = everywhere(cast, x, scale, False, False, E4M3)[0]
        assert torch.equal(out.double(), nearest(x * scale, E4M3))
        back = everywhere(hpu.cast_from_fp8, out, 1 / scale, torch.float32)
        assert_near(back, out.double() / scale)
    shaped = everywhere(cast, x, rows.flatten(), False, False, E4M3, [3, 1])[0]
    listed = everywhere(cast, x, [1.0, 2.0, 4.0], False, False, E4M3, [3, 1])[0]
    assert torch.equal(shaped.float(), nearest(x * rows, E4M3).float())
    assert torch.equal(listed.float(), shaped.float())
    back = everywhere(hpu.cast_from_fp8, shaped, [1.0, 0.5, 0.25], torch.bfloat16, [3, 1])
    assert_near(back, shaped.double() / rows)
    assert_near(everywhere(hpu.cast_from_fp8, shaped, 0.5, torch.float32), shaped.double() / 2)


def test_stochastic_rounding_is_right_on_average():
    torch.manual_seed(0)
    for fp8, low, high in ((E4M3, 16.0, 18.0), (E5M2, 16.0, 20.0), (E4M3, 0.0, 2.0**-9)):
        x = torch.full((4000,), low + 0.25 * (high - low))
        out = hpu.cast_to_fp8_v2(x, None, True, False, fp8)[0].float()
        assert set(out.tolist()) == {low, high}
        assert out.mean().item() == pytest.approx(
            low + 0.25 * (high - low), abs=0.05 * (high - low)
        )
    exact = torch.tensor(numbers(E4M3))
    assert torch.equal(hpu.cast_to_fp8_v2(exact, None, True, False, E4M3)[0].float(), exact)


def test_codes_beyond_the_largest_number_of_the_generation_are_not_finite():
    codes = torch.tensor([240.0, 256.0, 288.0, 448.0, -256.0]).to(E4M3)
    found = everywhere(hpu.cast_from_fp8, codes, None, torch.float32).tolist()
    if FULL[E4M3] == 448.0:
        assert found == [240.0, 256.0, 288.0, 448.0, -256.0]
    else:
        assert found[:2] == [240.0, torch.inf] and found[4] == -torch.inf
        assert math.isnan(found[2]) and math.isnan(found[3])


def test_fp8_is_cast_to_itself_only():
    codes = torch.tensor([1.0, -2.0]).to(E4M3)
    same = everywhere(hpu.cast_to_fp8_v2, codes, 2.0, False, False, E4M3)[0]
    assert same.float().tolist() == [2.0, -4.0]
    for args in ((codes, None, False, True, E4M3), (codes, None, False, False, E5M2)):
        with pytest.raises(RuntimeError, match="cast to no other type"):
            hpu.cast_to_fp8_v2(*args)


def test_one_input_is_cast_to_both_formats():
    x = torch.randn(3, 5) * 9
    wide, narrow, amax = everywhere(
        hpu.cast_to_fp8_hybrid, x, torch.tensor(2.0), torch.tensor(4.0), False, True
    )
    assert torch.equal(wide.double(), nearest(x * 2, E5M2))
    assert torch.equal(narrow.double(), nearest(x * 4, E4M3))
    assert amax.item() == x.abs().max().item()


@pytest.mark.parametrize("block", [(1, 4), (3, 1), (2, 2), (1, 1), (1, 12)])
@pytest.mark.parametrize("lead", [(), (2,), (0,)])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_blocks_are_cast_by_their_own_largest(block, lead, dtype):
    x = (torch.randn(*lead, 6, 12) * 3).to(dtype)
    if lead:
        x[..., :3, :4] = 0
    out, scale = everywhere(hpu.cast_to_fp8_just_in_time, x, list(block), E4M3, torch.float32)
    assert scale.shape == (*lead, 6 // block[0], 12 // block[1])
    wide = scale.double().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    torch.testing.assert_close(out.double() * wide, x.double(), rtol=0.07, atol=0.02)
    assert scale.isfinite().all() and (scale > 0).all()
    assert hpu.cast_to_fp8_just_in_time(x, list(block))[1].dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("is_power", [0, 1])
def test_scales_for_casts_are_maxima_over_the_full_scale(dtype, is_power):
    x = (torch.randn(5, 7) * 6).to(dtype)
    wide = x.double().abs()
    last = {"reduceAxis": -1, "reduceKeepdim": True}
    cases = [
        (1, {}, wide.max()),
        (2, {}, wide.amax(-1)),
        (2, {"reduceAxis": 0}, wide.amax(0)),
        (2, last, wide.amax(-1, keepdim=True)),
    ]
    for mode, options, largest in cases:
        wanted = largest / (240.0 * 0.5)
        wanted = torch.exp2(torch.ceil(torch.log2(wanted))) if is_power else wanted
        options = {**options, "fullscale": 240.0, "backoff": 0.5}
        found = everywhere(hpu.calculate_scale_for_cast, x, mode, is_power, **options)
        assert found.dtype == dtype
        assert_near(found, wanted)
    positional = everywhere(hpu.calculate_scale_for_cast, x, 2, 0, -1, True, 240.0, 1.0)
    assert_near(positional, wide.amax(-1, keepdim=True) / 240)
    asis = everywhere(hpu.calculate_scale_for_cast, x.abs(), 0, is_power)
    assert_near(asis, torch.exp2(torch.ceil(torch.log2(wide))) if is_power else wide)


def fp8(*shape, dtype=E4M3):
    return (torch.randn(shape) * 4).clamp(-200, 200).to(dtype)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 8, 3), (0, 4, 2), (4, 16, 32)])
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("out_dtype", FLOATS[:2])
def test_products_match_float64(sizes, trans_a, trans_b, out_dtype):
    m, k, n = sizes
    a, b = fp8(m, k), fp8(k, n, dtype=E5M2 if trans_a else E4M3)
    product = a.double() @ b.double()
    left, right = (a.T.contiguous() if trans_a else a), (b.T.contiguous() if trans_b else b)
    rows, columns = torch.rand(m, 1), torch.rand(n)
    bias, d = torch.randn(n).to(out_dtype), torch.randn(m, n)
    size = 16.0 * k
    gemm = hpu.fp8_gemm_v2

    def run(*rest):
        return everywhere(gemm, left, trans_a, right, trans_b, *rest)

    assert_near(run(None, out_dtype), product, size)
    scaled = product * rows * columns
    assert_near(run(None, out_dtype, rows, columns), scaled, size)
    assert_near(run(None, out_dtype, rows, columns, bias), scaled + bias.double(), size)
    assert_near(run(d, out_dtype, rows, columns, None, True), scaled + d.double(), size)
    assert_near(run(d, out_dtype, rows, columns, None, False), scaled, size)
    assert_near(run(None, out_dtype, 0.5, 0.25), product / 8, size)
    one = (torch.tensor(0.5), torch.tensor([0.25]))
    assert_near(run(None, out_dtype, *one), product / 8, size)
    listed = run(None, out_dtype, [0.5], [0.25] * n, None, False, [1, n]) if n else product
    assert_near(listed, product / 8, size)


def test_products_take_a_scale_per_block():
    a, b = fp8(6, 8), fp8(4, 8)
    a_scale, b_scale = torch.rand(6, 2), torch.rand(2, 2)
    real_a = a.double() * a_scale.double().repeat_interleave(4, 1)
    real_b = b.double() * b_scale.double().repeat_interleave(2, 0).repeat_interleave(4, 1)
    found = everywhere(
        hpu.fp8_gemm_v2, a, False, b, True, None, torch.float32, a_scale, b_scale.T.contiguous()
    )
    assert_near(found, real_a @ real_b.T, 100.0)


def test_products_are_batched():
    a, b = fp8(2, 3, 4, 8), fp8(2, 1, 8, 5)
    found = everywhere(hpu.fp8_gemm_v2, a, False, b, False, None, torch.float32, torch.rand(4, 1))
    assert found.shape == (2, 3, 4, 5)
    assert_near(hpu.fp8_gemm_v2(a, False, b, False, None, torch.float32), a.double() @ b.double(),
                100.0)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.ones(2, 4)}, "A is torch.float32"),
        ({"B": torch.ones(4, 3, dtype=torch.int8)}, "B is torch.int8"),
        ({"out_dtype": E4M3}, "out_dtype"),
        ({"accumulate": True}, "accumulate needs D"),
        ({"A_scale_inv": torch.ones(3, 1)}, "for 2 rows"),
        ({"A_scale_inv": torch.ones(2)}, "A_scale_inv"),
        ({"B_scale_inv": torch.ones(4)}, "for 3 columns"),
        ({"B_scale_inv": torch.ones(3, 1)}, "B_scale_inv"),
        ({"A": torch.ones(4).to(E4M3)}, "two are needed"),
    ],
)
def test_wrong_arguments_of_products_are_named(change, message):
    plain = {"A": fp8(2, 4), "trans_A": False, "B": fp8(4, 3), "trans_B": False, "D": None,
             "out_dtype": torch.bfloat16}  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        hpu.fp8_gemm_v2(**{**plain, **change})


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_match_float64(groups):
    x, weight = fp8(2, 4, 6, 5), fp8(6, 4 // groups, 3, 2)
    bias, per_channel = torch.randn(6), torch.rand(6)
    args = ([2, 1], [1, 0], [1, 2], groups)
    plain = F.conv2d(x.double(), weight.double(), None, *args)
    found = everywhere(hpu.conv2d_fp8, x, weight, None, *args, torch.float32)
    assert_near(found, plain, 200.0)
    wanted = plain * 0.5 * per_channel.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    scales = (torch.tensor(0.5), per_channel)
    found = everywhere(hpu.conv2d_fp8, x, weight, bias, *args, torch.float32, *scales)
    assert_near(found, wanted, 200.0)
    scalar = everywhere(hpu.conv2d_fp8, x, weight, None, *args, torch.bfloat16, 0.5, 0.25)
    assert_near(scalar, plain / 8, 200.0)
    assert hpu.conv2d_fp8(x, weight, groups=groups).dtype == torch.bfloat16


def test_sums_saturate():
    x = fp8(3, 4)
    for args in ((), ([0],), ([-1], True), ([0, 1],)):
        found = everywhere(hpu.sum_fp8, x, *args, out_dtype=torch.float32)
        keep = {"keepdim": True} if len(args) > 1 else {}
        wanted = x.double().sum(*[tuple(args[0])] if args else [], **keep)
        assert_near(found, wanted, 20.0)
    full = torch.full((4,), 200.0).to(E4M3)
    assert everywhere(hpu.sum_fp8, full).float().item() == FULL[E4M3]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("dim", [-1, 0])
def test_softmax_is_bfloat16_or_scaled_to_fp8(shape, dim):
    x, add = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    heads = torch.tensor(0.5)
    plain = everywhere(hpu.softmax_fp8, x, dim, None, None, heads, add)
    wanted = (x.double() * 0.5 + add.double()).softmax(dim)
    assert plain.dtype == torch.bfloat16
    assert_near(plain, wanted)
    two = (torch.tensor(2.0), torch.tensor(128.0))
    wanted = (x.double() * 2 * 0.5 + add.double()).softmax(dim) * 128
    calls = (
        (hpu.softmax_fp8, (*two, heads, add)),
        (hpu.softmax_fp8.Scalar_scales, (2.0, 128.0, heads, add)),
        (hpu.softmax_fp8.Scalar, (2.0, 128.0, 0.5, add)),
    )
    for op, rest in calls:
        found = everywhere(op, x, dim, *rest)
        assert found.dtype == E4M3
        torch.testing.assert_close(found.double(), wanted, rtol=0.07, atol=0.01)
    saturated = hpu.softmax_fp8.Scalar_scales(torch.zeros(1, 1), -1, 1.0, 1e4)
    assert saturated.float().item() == FULL[E4M3]
    with pytest.raises(RuntimeError, match="needs input_scale"):
        hpu.softmax_fp8(x, dim, None, torch.tensor(1.0))


def test_wrong_arguments_of_casts_are_named():
    x = torch.randn(4, 6)
    jit, scale = hpu.cast_to_fp8_just_in_time, hpu.calculate_scale_for_cast
    for op, args, message in (
        (hpu.cast_to_fp8_v2, (x,), "without dtype"),
        (hpu.cast_to_fp8_v2, (x, None, False, False, torch.int8), "torch.int8"),
        (hpu.cast_to_fp8_v2, (x.int(), None, False, False, E4M3), "input is torch.int32"),
        (hpu.cast_to_fp8_v2, (x[:1], torch.ones(4, 1), False, False, E4M3), "does not fit"),
        (hpu.cast_from_fp8, (x, None, torch.float32), "input is torch.float32"),
        (hpu.cast_from_fp8, (x.to(E4M3), None, torch.int32), "out_dtype"),
        (jit, (x, [4]), "two block sizes"),
        (jit, (x, [2, 3]), "one size is 1"),
        (jit, (x, [1, 4]), "no multiple"),
        (jit, (x, [0, 0]), "no multiple"),
        (scale, (x, 3, 0), "maxMode 3"),
        (scale, (x, 1, 2), "scaleMode 2"),
        (hpu.sum_fp8, (x,), "self is torch.float32"),
        (hpu.conv2d_fp8, (x, x), "input is torch.float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
