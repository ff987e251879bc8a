"""Weights of four bits. Run in a process that has the device, in any mode."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from hpu_emulator.ops.packed_weights import NF4
from hpu_emulator.regions import compiled_region
from hpu_emulator.runtime import SETTINGS
from torch import Tensor

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
FLOATS = (torch.float32, torch.bfloat16)


@pytest.fixture
def graph():
    """Where ops of graphs are available."""
    return contextlib.nullcontext() if SETTINGS.is_lazy else compiled_region()


def pack(values: Tensor) -> Tensor:
    """Nibbles [..., 8 * n] to int32 [..., n], by Python's integers."""
    words = []
    for eight in values.reshape(-1, 8).tolist():
        word = sum((nibble & 15) << (4 * i) for i, nibble in enumerate(eight))
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return torch.tensor(words, dtype=torch.int32).view(*values.shape[:-1], values.shape[-1] // 8)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
@pytest.mark.parametrize(
    ("rows", "columns", "groups"), [(6, 16, 3), (1, 8, 1), (0, 8, 1), (4, 24, 4)]
)
def test_nibbles_become_scaled_numbers(graph, signed, zeros, rows, columns, groups):
    torch.manual_seed(0)
    op = hpu.convert_from_int4 if signed else hpu.convert_from_uint4
    low, high = (-8, 8) if signed else (0, 16)
    values = torch.randint(low, high, (rows, columns))
    scale = torch.rand(groups, columns) + 0.1
    zero = torch.randint(low, high, (groups, columns))
    given = {"none": None, "packed": pack(zero), "float": zero.float()}[zeros]
    shifted = values.double()
    if zeros != "none":
        shifted = shifted - zero.double().repeat_interleave(rows // groups, dim=0)[:rows]
    wanted = shifted * scale.double().repeat_interleave(max(rows // groups, 1), dim=0)[:rows]
    with graph:
        for dtype in FLOATS:
            assert_near(everywhere(op, pack(values), scale, given, dtype), wanted, scale=16)


def test_the_groups_of_rows_can_be_named(graph):
    values, scale = torch.randint(0, 16, (5, 8)), torch.rand(3, 8)
    zero = torch.randint(0, 16, (3, 8))
    groups = torch.tensor([2, 0, 1, 1, 2], dtype=torch.int32)
    with graph:
        found = everywhere(
            hpu.convert_from_uint4, pack(values), scale, pack(zero), torch.float32, groups
        )
    for row, group in enumerate(groups.tolist()):
        wanted = (values[row] - zero[group]).double() * scale[group].double()
        assert_near(found[row], wanted, scale=16)


def test_a_vector_has_one_scale_per_value_or_one_for_all(graph):
    values = torch.arange(16)
    with graph:
        for scale in (torch.rand(16), torch.tensor(0.5)):
            found = everywhere(hpu.convert_from_uint4, pack(values), scale, None, torch.float32)
            assert_near(found, values.double() * scale.double(), scale=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": torch.zeros(4, 1, dtype=torch.int64)}, "int32 with eight values"),
        ({"words": torch.tensor(1, dtype=torch.int32)}, "no dimension"),
        ({"scale": torch.ones(3, 8)}, "do not divide 4 rows"),
        ({"scale": torch.ones(0, 8)}, "do not divide 4 rows"),
        ({"scale": torch.ones(2, 4, 8)}, "widen"),
        ({"zero": torch.zeros(1, 8, dtype=torch.int64)}, "packed int32, or floating"),
        ({"dtype": torch.int8}, "floating-point"),
        ({"groups": torch.zeros(3, dtype=torch.int32)}, "one entry per row"),
    ],
)
def test_wrong_packed_weights_are_refused(graph, change, message):
    given = {
        "words": torch.zeros(4, 1, dtype=torch.int32), "scale": torch.ones(1, 8), "zero": None,
        "dtype": torch.float32, "groups": None,
    } | change  # fmt: skip
    with graph, pytest.raises(RuntimeError, match=message):
        hpu.convert_from_uint4(*given.values())


@pytest.mark.skipif(SETTINGS.is_lazy, reason="compiled regions need the other mode")
@pytest.mark.parametrize("name", ["convert_from_uint4", "convert_from_int4"])
def test_packed_weights_need_a_graph(name):
    op = getattr(hpu, name).default
    words, scale = torch.ones(2, 1, dtype=torch.int32).to("hpu"), torch.ones(1, 8).to("hpu")
    with pytest.raises(RuntimeError, match="not available in eager mode"):
        op(words, scale, None, torch.float32)
    compiled = torch.compile(
        lambda w, s: op(w, s, None, torch.float32), backend="hpu_backend", fullgraph=True
    )
    assert compiled(words, scale).cpu().tolist() == [[1] + [0] * 7] * 2


@pytest.mark.parametrize(("size", "blocksize"), [(64, 64), (130, 64), (7, 4), (1, 64), (0, 64)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nf4_is_looked_up_with_the_first_value_in_the_high_bits(size, blocksize, dtype):
    codes = torch.randint(0, 16, (size + size % 2,))
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
    absmax = torch.rand(-(-size // blocksize))
    wanted = [NF4[code] * absmax[i // blocksize].item() for i, code in enumerate(codes[:size])]
    found = everywhere(hpu.dequantize_nf4, packed, absmax, blocksize, [size], dtype)
    assert_near(found, torch.tensor(wanted, dtype=torch.float64))


def test_nf4_has_the_shape_that_is_asked_for():
    packed = torch.full((6,), 0xF0, dtype=torch.uint8)
    found = everywhere(hpu.dequantize_nf4, packed, torch.tensor([2.0]), 16, [3, 4], torch.float32)
    assert found.tolist() == [[2.0, -2.0] * 2] * 3


@pytest.mark.parametrize(
    ("packed", "num_scales", "message"),
    [
        (torch.zeros(4, dtype=torch.int32), 1, "uint8 with two values"),
        (torch.zeros(3, dtype=torch.uint8), 1, "3 bytes for 8 values"),
        (torch.zeros(4, dtype=torch.uint8), 2, "2 scales for 8 values"),
    ],
)
def test_wrong_nf4_is_refused(packed, num_scales, message):
    with pytest.raises(RuntimeError, match=message):
        hpu.dequantize_nf4(packed, torch.ones(num_scales), 8, [8], torch.float32)


def test_every_nibble_of_a_word_has_its_place(graph):
    with graph:
        for place, signed in itertools.product(range(8), (False, True)):
            values = torch.zeros(1, 8, dtype=torch.int64)
            values[0, place] = 15
            op = hpu.convert_from_int4 if signed else hpu.convert_from_uint4
            found = op(pack(values), torch.ones(1, 8), None, torch.float32)
            assert found[0, place] == (-1 if signed else 15) and found.count_nonzero() == 1
