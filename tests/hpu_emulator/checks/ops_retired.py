"""Ops of earlier years. Run in a process that has the device."""

from __future__ import annotations

import pytest
import torch

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
FLOATS = (torch.float32, torch.bfloat16)


def softmax(rows: torch.Tensor) -> torch.Tensor:
    """Row by row in float64."""
    flat = rows.double().reshape(-1, rows.shape[-1])
    out = [torch.exp(row - row.max()) / torch.exp(row - row.max()).sum() for row in flat]
    return (torch.stack(out) if out else flat).view(rows.shape)


@pytest.mark.parametrize("shape", [(1, 4, 1, 32, 1), (3, 4, 2, 9, 5), (0, 4, 2, 3, 2)])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32])
@pytest.mark.parametrize("in_place", [False, True])
def test_beams_take_over_a_stretch_of_each_other(shape, dtype, in_place):
    torch.manual_seed(0)
    cache = torch.randint(0, 100, shape).to(dtype)
    start = torch.randint(0, shape[3], shape[:1], dtype=torch.int32)
    end = (start + torch.randint(0, shape[3], shape[:1])).clamp(max=shape[3]).int()
    beams = torch.randint(0, 4, (shape[0], 4))
    packed = (beams * torch.tensor([64, 16, 4, 1])).sum(-1).to(torch.uint8)
    wanted = cache.clone()
    for sequence in range(shape[0]):
        stretch = slice(int(start[sequence]), int(end[sequence]))
        for beam in range(4):
            taken = cache[sequence, beams[sequence, beam], :, stretch]
            wanted[sequence, beam, :, stretch] = taken
    op = hpu.kv_reorder_ if in_place else hpu.kv_reorder
    assert torch.equal(everywhere(op, cache, start, end, packed), wanted)


def test_in_place_ops_change_the_device_tensor_they_are_given():
    tensor = torch.arange(8.0).view(8, 1, 1, 1).to("hpu")
    same = hpu.in_place_interleave_(tensor)
    assert same.data_ptr() == tensor.data_ptr()
    assert tensor.flatten().cpu().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    transposed = torch.arange(24.0).view(1, 4, 2, 3).to("hpu").transpose(2, 3)
    before = transposed.cpu()
    bounds = (torch.tensor([0]).to("hpu"), torch.tensor([2]).to("hpu"))
    hpu.kv_reorder_(transposed, *bounds, torch.zeros(1, dtype=torch.uint8).to("hpu"))
    assert torch.equal(transposed.cpu()[0, 3, :2], before[0, 0, :2])
    assert torch.equal(transposed.cpu()[0, 3, 2], before[0, 3, 2])


@pytest.mark.parametrize("num_rows", [0, 4, 12])
def test_the_first_quarter_is_interleaved(num_rows):
    tensor = torch.randn(num_rows, 2, 3, 1)
    wanted = [tensor[i // 4] for i in range(num_rows)]
    found = everywhere(hpu.in_place_interleave, tensor)
    assert torch.equal(found, torch.stack(wanted) if wanted else tensor)


@pytest.mark.parametrize(
    ("shape", "indices"),
    [((5, 5), [[1, 2]]), ((5, 5, 5), [[1, 2], [3, 1]]), ((2, 3, 4), [[[1], [0]]]), ((3, 2), [[]])],
)
def test_a_plain_index_is_an_index(shape, indices):
    source = torch.randn(shape)
    tensors = [torch.tensor(index, dtype=torch.int64) for index in indices]
    assert torch.equal(everywhere(hpu.plain_index, source, tensors), source[tuple(tensors)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 2, 3, 4)])
def test_scaled_masked_softmax_adds_the_mask_after_scaling(dtype, shape):
    scores = torch.randn(shape).to(dtype)
    mask = (torch.rand(shape[0], 1, 1, shape[3]) > 0.5).to(dtype) * -5
    found = everywhere(hpu.scaled_masked_softmax, scores, mask, 0.17)
    assert_near(found, softmax(scores.double() * 0.17 + mask.double()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(2, 5, 5), (1, 1, 1), (3, 4, 6)])
def test_triangular_softmax_sees_no_later_key(dtype, shape):
    torch.manual_seed(0)
    scores = torch.randn(shape).to(dtype)
    hidden = torch.arange(shape[2])[None, :] > torch.arange(shape[1])[:, None]
    wanted = softmax((scores.double() * 1.3).masked_fill(hidden, -torch.inf))
    assert_near(everywhere(hpu.scaled_triangular_softmax, scores, 1.3), wanted)
    out, inverse, peak = everywhere(hpu.scaled_triangular_softmax_retain, scores, 1.3)
    assert (inverse.dtype, peak.dtype) == (torch.float32, dtype)
    assert_near(out, wanted)
    again = everywhere(hpu.scaled_triangular_softmax, scores, 1.3, inverse, peak)
    assert_near(again, wanted)


@pytest.mark.parametrize("flavor", [0, 1])
@pytest.mark.parametrize("shape", [(3, 7), (1,), (0, 4)])
def test_custom_softmax_is_a_softmax(flavor, shape):
    scores = torch.randn(shape).bfloat16()
    assert_near(everywhere(hpu.custom_softmax, scores, flavor), softmax(scores))


@pytest.mark.parametrize("half_to_float", [False, True])
def test_ragged_softmax_stops_at_each_row_s_count(half_to_float):
    scores = torch.randn(4, 1, 1, 6).bfloat16()
    counts = torch.tensor([1, 6, 3, 0])
    found = everywhere(hpu.ragged_softmax, scores, -1, half_to_float, counts)
    assert found.dtype == (torch.float32 if half_to_float else torch.bfloat16)
    for row, count in enumerate(counts.tolist()):
        wanted = torch.zeros(1, 1, 6).double()
        wanted[..., :count] = softmax(scores[row, ..., :count]) if count else 0
        assert_near(found[row], wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_masked_gemm_adds_the_product_of_the_masks(dtype, transposed):
    torch.manual_seed(0)
    shapes = [(2, 3, 5, 4), (2, 3, 4, 7), (2, 1, 5, 6), (2, 1, 6, 7)]
    a, b, mask_a, mask_b = (torch.randn(shape).to(dtype) for shape in shapes)
    wanted = a.double() @ b.double() + mask_a.double() @ mask_b.double()
    if transposed[0]:
        a, mask_a = a.mT, mask_a.mT
    if transposed[1]:
        b, mask_b = b.mT, mask_b.mT
    found = everywhere(hpu.masked_batch_gemm, a, b, mask_a, mask_b, *transposed)
    assert_near(found, wanted, scale=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hpu.kv_reorder(x, x, x, x), r"is not \[B, 4, \.\.\., S, D\]"),
        (lambda x: hpu.kv_reorder(x.view(1, 4, 1, 1), x[0], x[0], x[0]), "one entry for each of 1"),
        (hpu.in_place_interleave, "4 rows per sequence"),
        (lambda x: hpu.plain_index(x, []), "0 indices"),
        (lambda x: hpu.custom_softmax(x, 0), "bfloat16 is needed"),
        (lambda x: hpu.custom_softmax(x.bfloat16(), 2), "flavor 2"),
        (lambda x: hpu.ragged_softmax(x, 0, False, x), "the last dimension"),
        (lambda x: hpu.ragged_softmax(x, -1, False, torch.ones(3)), "3 valid counts"),
        (lambda x: hpu.scaled_triangular_softmax(x, 1.0), "batch, queries, keys"),
        (lambda x: hpu.scaled_triangular_softmax(x[None], 1.0, x), "given together"),
        (lambda x: hpu.masked_batch_gemm(x, x, x, x, False, False), "four dimensions"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.ones(2, 2))
