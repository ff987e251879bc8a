"""Products with packed weights against float64, and packing against itself."""

from __future__ import annotations

import pytest
import torch

from tests.ops.overrides import Override, isas
from vllm.ops import REFERENCES
from vllm.ops.moe import GATED_ACTIVATIONS

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
# Rows, inputs, outputs: below, at and above the sizes of tiles, panels and blocks.
SHAPES = [(1, 64, 192), (2, 1, 1), (5, 33, 70), (7, 128, 64), (32, 100, 130), (131, 514, 257)]


def packed_linear(x, weight, bias, wide):
    packed = torch.ops.vllm.pack_weight(weight)
    return torch.ops.vllm.packed_linear(x, packed, bias, len(weight), wide)


PACKED_LINEAR = [Override(isa, packed_linear) for isa in isas()]


@pytest.mark.parametrize("override", PACKED_LINEAR, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_products_match_float64(override, dtype, rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    exact = x.double() @ weight.double().T
    got = override(x, weight, bias, False)
    assert got.dtype == dtype
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(
        got.double(), exact + bias.double(), rtol=tolerance, atol=tolerance * 4
    )
    wide = override(x, weight, None, True)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=1e-4, atol=1e-4)


def packed_greatest(x, weight, bias):
    return torch.ops.vllm.packed_greatest(x, torch.ops.vllm.pack_weight(weight), bias, len(weight))


@pytest.mark.parametrize("override", [Override(isa, packed_greatest) for isa in isas()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_the_greatest_output_is_that_of_the_product(override, dtype, rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows)
    # Few values, so that many outputs are equal.
    x = torch.randint(-1, 2, (rows, inputs), generator=generator).to(dtype)
    weight = torch.randint(-1, 2, (outputs, inputs), generator=generator).to(dtype)
    bias = torch.randint(-1, 2, (outputs,), generator=generator).to(dtype)
    for some in (bias, None):
        product = x.float() @ weight.float().T + (0 if some is None else some.float())
        most, got = override(x, weight, some)
        assert got.dtype == torch.int32
        assert torch.equal(got, REFERENCES["greatest"](product))
        assert torch.equal(most, product.amax(dim=1))
    packed, few = torch.ops.vllm.pack_weight(weight), outputs - 1
    if few:  # padding and other outputs do not count
        most, got = torch.ops.vllm.packed_greatest(x, packed, None, few)
        product = (x.float() @ weight.float().T)[:, :few]
        assert torch.equal(got, REFERENCES["greatest"](product))
        assert torch.equal(most, product.amax(dim=1))


@pytest.mark.parametrize("override", [Override(isa, packed_greatest) for isa in isas()], ids=str)
def test_rows_without_a_greatest_output_have_none(override):
    x = torch.tensor([[1.0], [torch.nan], [-torch.inf], [torch.inf]])
    most, ids = override(x, torch.ones(70, 1), None)
    assert ids.tolist() == [0, -1, -1, 0]
    assert most.nan_to_num(nan=7.0, posinf=9.0, neginf=-9.0).tolist() == [1, 7, -9, 9]
    weight = torch.ones(130, 1)
    weight[129] = torch.nan
    assert override(x[:1], weight, None)[1].tolist() == [-1]


def packed_gated(x, weight, bias, act):
    pack, outputs = torch.ops.vllm.pack_weight, len(weight) // 2
    biases = None if bias is None else pack(bias.float()[:, None], True).flatten().to(bias.dtype)
    return torch.ops.vllm.packed_gated(x, pack(weight, True), biases, outputs, act)


@pytest.mark.parametrize("override", [Override(isa, packed_gated) for isa in isas()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", GATED_ACTIVATIONS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 96), (7, 33, 70), (13, 20, 5)])
def test_gated_products_are_those_of_their_parts(override, dtype, act, rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(2 * outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(2 * outputs, generator=generator).to(dtype)
    for some in (bias, None):
        plain = x.double() @ weight.double().T + (0 if some is None else some.double())
        expected = GATED_ACTIVATIONS[act](plain.to(dtype).double())
        tolerance = DTYPES[dtype]
        torch.testing.assert_close(
            override(x, weight, some, act).double(),
            expected,
            rtol=4 * tolerance,
            atol=10 * tolerance,
        )


@pytest.mark.parametrize("override", PACKED_LINEAR, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_other_rows(override, dtype):
    x, weight = torch.randn(67, 96).to(dtype), torch.randn(130, 96).to(dtype)
    together = override(x, weight, None, False)
    for rows in (1, 2, 3, 6, 7, 64):
        assert torch.equal(override(x[:rows], weight, None, False), together[:rows])


@pytest.mark.parametrize("override", PACKED_LINEAR, ids=str)
def test_rows_may_be_part_of_a_wider_tensor(override):
    x, weight = torch.randn(4, 96).bfloat16(), torch.randn(10, 31).bfloat16()
    torch.testing.assert_close(
        override(x[:, 7:38], weight, None, False), x[:, 7:38] @ weight.T, rtol=1e-2, atol=4e-2
    )
    assert override(x[:0, :31], weight, None, False).shape == (0, 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (64, 64), (130, 67), (200, 130)])
def test_packed_rows_are_those_of_the_weight(dtype, outputs, inputs):
    if not isas():
        pytest.skip("native kernels are not built")
    weight = torch.randn(outputs, inputs).to(dtype)
    packed = torch.ops.vllm.pack_weight(weight)
    ids = torch.randint(0, outputs, (50,), dtype=torch.int32)
    assert torch.equal(torch.ops.vllm.packed_rows(packed, ids, outputs, inputs), weight[ids])
    with pytest.raises(RuntimeError, match=f"outside of the table's {outputs} rows"):
        torch.ops.vllm.packed_rows(packed, torch.tensor([outputs]), outputs, inputs)


def pack_in_pieces(weight, pieces, gated):
    parts = weight.chunk(2) if gated else (weight,)
    packed = torch.ops.vllm.empty_packed(*weight.shape, gated, weight.dtype)
    for half, part in enumerate(parts):
        first = 0
        for piece in part.split(pieces):
            torch.ops.vllm.pack_rows(piece, packed, first, half if gated else -1)
            first += len(piece)
    return packed


@pytest.mark.parametrize("override", [Override(isa, pack_in_pieces) for isa in isas()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(2, 1), (64, 32), (64, 64), (130, 67), (96, 33), (320, 130)]
)
def test_a_weight_may_be_packed_in_pieces(override, dtype, gated, outputs, inputs):
    weight = torch.randn(outputs, 2 * inputs).to(dtype)[:, inputs // 2 : inputs // 2 + inputs]
    each = outputs // 2 if gated else outputs
    width = 32 if gated else 64
    halves = weight.unflatten(0, (-1, each))
    panels, depth = -(-each // width), inputs + inputs % 2 * (dtype == torch.bfloat16)
    expected = torch.zeros(panels * width, depth, len(halves), dtype=dtype)
    expected[:each, :inputs] = halves.permute(1, 2, 0)
    pair = 2 if dtype == torch.bfloat16 else 1
    # [panel, output, pair, input of it, half] -> [panel, pair, half, output, input of it]
    expected = expected.view(panels, width, depth // pair, pair, -1).permute(0, 2, 4, 1, 3)
    expected = expected.reshape(panels, depth, 64)
    for pieces in ([each], [1] * each, [each // 3, each - each // 3]):
        packed = override(weight, pieces, gated)
        assert torch.equal(packed, expected)
    assert torch.equal(torch.ops.vllm.pack_weight(weight, gated), expected)


def test_rows_that_do_not_fit_a_packed_weight_are_refused():
    if not isas():
        pytest.skip("native kernels are not built")
    packed = torch.ops.vllm.empty_packed(70, 8, False, torch.float32)
    assert torch.ops.vllm.pack_rows(torch.zeros(0, 8), packed, 0) is None
    for rows, first, text in (
        (torch.zeros(70, 8), 64, "rows 64 to 134 are outside"),
        (torch.zeros(1, 8), -1, "rows -1 to 0 are outside"),
        (torch.zeros(1, 9), 0, "packed must have size 9 in dimension 1"),
        (torch.zeros(1, 8).half(), 0, "packed must be"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch.ops.vllm.pack_rows(rows, packed, first)
    with pytest.raises(RuntimeError, match="a gate for every output, has 7"):
        torch.ops.vllm.empty_packed(7, 8, True, torch.float32)


def test_a_weight_of_another_shape_is_refused():
    if not isas():
        pytest.skip("native kernels are not built")
    packed = torch.ops.vllm.pack_weight(torch.zeros(70, 8))
    with pytest.raises(RuntimeError, match="packed must have size 9 in dimension 1"):
        torch.ops.vllm.packed_linear(torch.zeros(1, 9), packed, None, 70, False)
    with pytest.raises(RuntimeError, match="packed must have size 3 in dimension 0"):
        torch.ops.vllm.packed_linear(torch.zeros(1, 8), packed, None, 150, False)
