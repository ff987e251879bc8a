"""Products by AMX's tiles, on a model of the instructions: they need not run here."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.overrides import isas

ROOT = Path(__file__).parents[2]
PANEL, PAIR = 64, 2
# Rows and inputs below, at and above the sizes of tiles.
SHAPES = [(1, 32), (3, 2), (15, 70), (16, 64), (17, 34), (32, 96), (33, 130), (70, 62)]

pytestmark = pytest.mark.skipif(not isas(), reason="the kernels were not built")


@pytest.fixture(scope="module")
def multiply(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    name = os.environ.get("CXX", "g++")
    compiler = shutil.which(name)
    if compiler is None:
        pytest.skip(f"no compiler: {name}")
    library = tmp_path_factory.mktemp("tiles") / "harness.so"
    source = Path(__file__).parent / "tiles" / "harness.cpp"
    includes = (f"-I{ROOT / 'csrc'}", f"-I{source.parent}")
    flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-psabi")
    subprocess.run([compiler, *flags, *includes, source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).multiply
    function.restype = None
    return function


def panel_of(weight: Tensor) -> Tensor:
    return torch.ops.vllm.pack_weight(weight)[0]


def products(
    multiply: Callable[..., None],
    x: Tensor,
    panel: Tensor,
    outputs: int,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    greatest: bool = False,
    gate: int = 0,
) -> Tensor:
    """[T, outputs], or [T, 1] of the greatest."""
    out = torch.full((len(x), 1 if greatest else outputs), torch.nan, dtype=out_dtype)
    pointer = ctypes.c_void_p
    multiply(
        pointer(x.data_ptr()),
        ctypes.c_int64(x.stride(0)),
        len(x),
        ctypes.c_int64(x.shape[1]),
        pointer(panel.data_ptr()),
        pointer(None if bias is None else bias.data_ptr()),
        pointer(out.data_ptr()),
        ctypes.c_int64(out.stride(0)),
        outputs,
        int(out_dtype == torch.float32 and not greatest),
        int(greatest),
        gate,
    )
    return out


@pytest.mark.parametrize(("rows", "inputs"), SHAPES)
@pytest.mark.parametrize("outputs", [PANEL, 37])
def test_products_match_float64(multiply, rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows)
    wide = torch.randn(rows, inputs + 6, generator=generator).bfloat16()
    x = wide[:, :inputs]  # rows that are apart; what follows them is not theirs
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    bias = torch.randn(PANEL, generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    panel = panel_of(weight)
    got = products(multiply, x, panel, outputs, out_dtype=torch.float32)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)
    biased = products(multiply, x, panel, outputs, bias=bias)
    expected = exact + bias[:outputs].double()
    torch.testing.assert_close(biased.double(), expected, rtol=1e-2, atol=4e-2)
    best = products(multiply, x, panel, outputs, out_dtype=torch.float32, greatest=True)
    assert torch.equal(best[:, 0], got.amax(1))


@pytest.mark.parametrize("rows", [1, 18, 47])
def test_a_gate_multiplies_the_halves_of_a_panel(multiply, rows):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 48, generator=generator).bfloat16()
    weight = torch.randn(PANEL, 48, generator=generator).bfloat16() / 4
    gate, up = (x.float() @ weight.float().T).bfloat16().chunk(2, dim=1)
    silu = 1
    got = products(multiply, x, panel_of(weight), PANEL // 2, gate=silu)
    torch.testing.assert_close(got, F.silu(gate) * up, rtol=2e-2, atol=2e-2)


def test_a_row_does_not_depend_on_the_others(multiply):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 90, generator=generator).bfloat16()
    panel = panel_of(torch.randn(PANEL, 90, generator=generator).bfloat16())
    together = products(multiply, x, panel, PANEL, out_dtype=torch.float32)
    for count in (1, 17, 33):
        some = products(multiply, x[7 : 7 + count], panel, PANEL, out_dtype=torch.float32)
        assert torch.equal(some, together[7 : 7 + count])
