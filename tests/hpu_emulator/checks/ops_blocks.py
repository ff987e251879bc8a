"""Softmax over blocks of keys. Run in a process that has the device."""

from __future__ import annotations

import pytest
import torch
from hpu_emulator.runtime import SETTINGS

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
FLOATS = (torch.float32, torch.bfloat16)
E4M3 = torch.float8_e4m3fn
# Blocks, KV heads, group, queries, block size; groups of the blocks
CASES = [
    ((1, 1, 1, 1, 1), [0]),
    ((5, 2, 3, 1, 4), [0, 1, 0, -1, 2]),
    ((6, 1, 2, 2, 3), [-1, -1, 1, 1, 1, 0]),
    ((3, 2, 1, 1, 7), [-1, -1, -1]),
    ((0, 2, 1, 1, 7), []),
]
ROWS = 3


def operands(case, dtype):
    shape, groups = case
    n, _, _, t, size = shape
    torch.manual_seed(n)
    attn = torch.randn(shape).to(dtype) * 4
    bias = torch.where(torch.rand(n, 1, 1, t, size) > 0.3, 0.0, -torch.inf)
    bias[..., 0] = 0.0
    return attn, bias.to(dtype), torch.tensor(groups, dtype=torch.int64)


def softmax(attn, bias, groups):
    """Of each row over all keys of its blocks, in float64."""
    scores = attn.double() + bias.double()
    out = torch.zeros_like(scores)
    for row in range(ROWS):
        mine = [i for i, group in enumerate(groups.tolist()) if group == row]
        if mine:
            weights = torch.exp(scores[mine] - scores[mine].amax((0, -1), keepdim=True))
            out[mine] = weights / weights.sum((0, -1), keepdim=True)
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_and_their_adjustment_make_a_softmax(case, dtype):
    attn, bias, groups = operands(case, dtype)
    weights, peak, total = everywhere(hpu.block_softmax, attn, bias, groups)
    n, kv, gqa, t, _ = attn.shape
    assert peak.shape == total.shape == (n, kv * gqa * t)
    nobody = groups < 0
    assert torch.isnan(peak[nobody]).all() and torch.isnan(total[nobody]).all()
    assert not weights[nobody].any()
    shape = [n, kv, gqa, t, 1]
    factor = everywhere(hpu.block_softmax_adjustment, peak, total, groups, ROWS, shape)
    assert_near(weights * factor, softmax(attn, bias, groups), 2.0)
    whole = everywhere(
        hpu.block_softmax_adjustment, peak.view(shape), total.view(shape), groups, ROWS
    )
    assert torch.equal(whole, factor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_spare_columns_of_statistics_are_cut_off(dtype):
    attn, bias, groups = operands(CASES[1], dtype)
    _, peak, total = hpu.block_softmax(attn, bias, groups)
    shape = [5, 2, 3, 1, 1]
    wanted = hpu.block_softmax_adjustment(peak, total, groups, ROWS, shape)
    spare = torch.full((5, 2), torch.nan, dtype=dtype)
    wide = (torch.cat((part, spare), 1) for part in (peak, total))
    found = everywhere(hpu.block_softmax_adjustment, *wide, groups, ROWS, shape)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_staged_statistics_are_those_of_the_group(case, dtype):
    attn, bias, groups = operands(case, dtype)
    _, peak, total = hpu.block_softmax(attn, bias, groups)
    highest, sums = everywhere(hpu.block_softmax_staged_sum_max, peak, total, groups, ROWS)
    for i, group in enumerate(groups.tolist()):
        mine = [j for j, other in enumerate(groups.tolist()) if other == group]
        if group < 0:
            assert torch.isnan(highest[i]).all() and torch.isnan(sums[i]).all()
            continue
        best = peak[mine].double().amax(0)
        wanted = (total[mine].double() * torch.exp(peak[mine].double() - best)).sum(0)
        assert_near(highest[i], best)
        assert_near(sums[i], wanted, 4.0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_constant_maximum_makes_the_same_softmax(case, dtype, scale):
    attn, bias, groups = operands(case, dtype)
    found = everywhere(
        hpu.block_softmax_const_max, attn, bias, groups, ROWS, 10.0, scale, torch.float32
    )
    assert_near(found, softmax(attn, bias, groups) * scale, 2.0)
    assert hpu.block_softmax_const_max(attn, bias, groups, ROWS, 10.0).dtype == dtype


def test_results_are_scaled_and_saturated_to_fp8():
    attn, bias, groups = operands(CASES[0], torch.bfloat16)
    full = SETTINGS.generation.fp8_max
    weights, peak, total = everywhere(hpu.block_softmax, attn, bias, groups, 1000.0, E4M3)
    assert (weights.dtype, weights.flatten().tolist()) == (E4M3, [full])
    shape = [1, 1, 1, 1, 1]
    factor = everywhere(
        hpu.block_softmax_adjustment, peak, total, groups, ROWS, shape, 2.0, torch.float32
    )
    assert (factor.dtype, factor.flatten().tolist()) == (torch.float32, [2.0])
    const = everywhere(hpu.block_softmax_const_max, attn, bias, groups, ROWS, 1.0, 1000.0, E4M3)
    assert (const.dtype, const.flatten().tolist()) == (E4M3, [full])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 7), (0, 4)])
def test_steps_of_an_online_softmax_add_up(dtype, shape):
    pieces = [torch.randn(shape).to(dtype) * 3 for _ in range(3)]
    pieces[0] = torch.full_like(pieces[0], -torch.inf)
    weights, peak, total = None, None, None
    for piece in pieces:
        new, peak, total, correction = everywhere(hpu.softmax_fa2, piece, peak, total)
        new = new.double()
        weights = new if weights is None else torch.cat((weights * correction.double(), new), -1)
    wanted = torch.cat([piece.double() for piece in pieces], -1).softmax(-1)
    torch.testing.assert_close(weights / total.double(), wanted, rtol=3e-2, atol=1e-2)


def test_scores_are_scaled_back_first():
    x = torch.randn(2, 5)
    wanted = hpu.softmax_fa2(x * 0.25)
    found = everywhere(hpu.softmax_fa2, x, None, None, -1, False, torch.tensor(0.25))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs)


def test_wrong_arguments_are_named():
    attn, bias, groups = operands(CASES[1], torch.float32)
    _, peak, total = hpu.block_softmax(attn, bias, groups)
    shape = [5, 2, 3, 1, 1]
    adjust = hpu.block_softmax_adjustment
    for op, args, message in (
        (hpu.block_softmax, (attn[0], bias, groups), "5 dimensions, got 4"),
        (hpu.block_softmax, (attn, bias[:4], groups), r"bias \(4"),
        (hpu.block_softmax, (attn, bias, groups[:4]), r"groups \(4,\)"),
        (hpu.block_softmax, (attn, bias, groups, None, None, True), "fp8_exp"),
        (hpu.block_softmax_const_max, (attn, bias, groups[:4], ROWS, 1.0), r"groups \(4,\)"),
        (adjust, (peak, total, groups, ROWS), "out_shape is needed"),
        (adjust, (peak, total[:4], groups, ROWS, shape), "block_sum"),
        (adjust, (peak, total, groups[:4], ROWS, shape), r"groups \(4,\)"),
        (adjust, (peak, total, groups, ROWS, [5, 9, 3, 1, 1]), "out_shape"),
        (adjust, (peak, total, groups, ROWS, shape, None, None, peak), "attn_fused_mult"),
        (adjust, (peak, total, groups, ROWS, shape, None, None, None, True), "is_staged"),
        (hpu.softmax_fa2, (attn, None, None, -1, True), "experimental_mode"),
        (hpu.softmax_fa2, (attn, peak), "together"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
