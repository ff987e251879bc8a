"""Normalisation, rotary embedding and fast functions. Run in a process that has the device."""

from __future__ import annotations

import importlib

import pytest
import torch
from habana_frameworks.torch.hpex.kernels import (
    CustomSoftmax,
    RotaryPosEmbeddingHelperV1,
    RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingHelperV3,
    RotaryPosEmbeddingMode,
    apply_rotary_pos_emb,
)
from habana_frameworks.torch.hpex.normalization import FusedRMSNorm

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", [(1,), (0, 8), (3, 7), (2, 1, 96), (2, 3, 5)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gamma_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_matches_float64(shape, dtype, gamma_dtype):
    x, gamma = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1]).to(gamma_dtype)
    inverse = 1 / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5)
    wanted = x.double() * inverse * gamma.double()
    for call in ((hpu.rms_norm, 1e-5), (hpu.rms_norm, 1e-5, None, True), (hpu.rms_norm_fast, 1e-5)):
        out, root = everywhere(call[0], x, gamma, *call[1:])
        expected = dtype if dtype == gamma_dtype else torch.float32
        assert out.dtype == root.dtype == expected
        assert_near(out, wanted, 3.0)
        assert_near(root, inverse, 3.0)
    fused = FusedRMSNorm.apply(x.to("hpu"), gamma.to("hpu"), 1e-5)
    assert_near(fused.cpu(), wanted, 3.0)


def test_rms_norm_names_wrong_arguments():
    with pytest.raises(RuntimeError, match=r"gamma \(3,\)"):
        hpu.rms_norm(torch.ones(2, 4), torch.ones(3), 1e-5)
    with pytest.raises(RuntimeError, match="floats are needed"):
        hpu.rms_norm(torch.ones(2, 4, dtype=torch.int32), torch.ones(4), 1e-5)


def turned(x: torch.Tensor, mode: int) -> torch.Tensor:
    out, half = torch.empty_like(x), x.shape[-1] // 2
    for i in range(x.shape[-1]):
        if mode == 0:
            out[..., i] = -x[..., i + half] if i < half else x[..., i - half]
        else:
            out[..., i] = -x[..., i + 1] if i % 2 == 0 else x[..., i - 1]
    return out


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("shape", [(5, 3, 8), (0, 2, 4), (1, 1, 2), (7, 1, 6)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("table_dtype", FLOATS)
def test_rotation_by_tables_of_each_token(mode, shape, dtype, table_dtype):
    x = torch.randn(shape).to(dtype)
    sin, cos = (torch.randn(shape[0], 1, shape[2]).to(table_dtype) for _ in range(2))
    out = everywhere(hpu.rotary_pos_embedding, x, sin, cos, None, 0, mode)
    is_wide = torch.float32 in (dtype, table_dtype)
    assert out.dtype == (torch.float32 if is_wide else dtype)
    wanted = x.double() * cos.double() + turned(x.double(), mode) * sin.double()
    assert_near(out, wanted, 4.0)


def test_rotation_by_positions_and_by_offset():
    x = torch.randn(2, 3, 4, 8)
    cos, sin = torch.randn(16, 8), torch.randn(16, 8)
    ids = torch.randint(0, 16, (2, 4))
    by_row = x * cos[ids].unsqueeze(1) + turned(x, 0) * sin[ids].unsqueeze(1)
    device = [t.to("hpu") for t in (x, cos, sin, ids)]
    assert_near(everywhere(hpu.rotary_pos_embedding, x, sin, cos, ids, 0, 0), by_row, 4.0)
    tables = (t.view(1, 1, 16, 8) for t in (sin, cos))
    assert_near(everywhere(hpu.rotary_pos_embedding, x, *tables, ids, 0, 0), by_row, 4.0)
    assert_near(RotaryPosEmbeddingHelperV2.apply(*device).cpu(), by_row, 4.0)
    assert_near(apply_rotary_pos_emb(*device).cpu(), by_row, 4.0)
    later = x * cos[5:9] + turned(x, 0) * sin[5:9]
    assert_near(everywhere(hpu.rotary_pos_embedding, x, sin, cos, None, 5, 0), later, 4.0)
    assert_near(RotaryPosEmbeddingHelperV1.apply(*device[:3], 5).cpu(), later, 4.0)
    pairs = apply_rotary_pos_emb(*device[:3], None, 5, RotaryPosEmbeddingMode.PAIRWISE)
    assert_near(pairs.cpu(), x * cos[5:9] + turned(x, 1) * sin[5:9], 4.0)


@pytest.mark.parametrize("cache_batch", [None, 1, 2])
def test_rotation_by_a_cache_turns_the_beginning_of_each_head(cache_batch):
    p = torch.randn(5, 2, 3, 12)
    cache = torch.randn(*((9,) if cache_batch is None else (9, cache_batch)), 3, 2)
    wanted = p.clone()
    for s in range(5):
        for b in range(2):
            pairs = cache[s] if cache_batch is None else cache[s, min(b, cache_batch - 1)]
            for j, (cos, sin) in enumerate(pairs):
                first, second = p[s, b, :, 2 * j], p[s, b, :, 2 * j + 1]
                wanted[s, b, :, 2 * j] = first * cos - second * sin
                wanted[s, b, :, 2 * j + 1] = second * cos + first * sin
    device = (p.to("hpu"), cache.to("hpu"))
    assert_near(RotaryPosEmbeddingHelperV3.apply(*device).cpu(), wanted, 4.0)
    assert_near(apply_rotary_pos_emb(*device).cpu(), wanted, 4.0)


def test_rotation_names_wrong_arguments():
    x, table = torch.randn(4, 2, 8), torch.randn(4, 1, 8)
    for args, message in (
        ((x, table, table, None, 0, 2), "mode 2"),
        ((x, table[..., :4], table, None, 0, 0), "8 and 4 dimensions"),
        ((x[..., :7], table[..., :7], table[..., :7], None, 0, 0), "even"),
        ((x[:1], table, table, None, 0, 0), "widen"),
    ):
        with pytest.raises(RuntimeError, match=message):
            everywhere(hpu.rotary_pos_embedding, *args)
    with pytest.raises(RuntimeError, match="rope_cache"):
        RotaryPosEmbeddingHelperV3.apply(x, table)


@pytest.mark.parametrize("name", ["exp", "sqrt", "rsqrt", "reciprocal"])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 17)])
def test_fast_functions_are_rounded_to_bfloat16(name, shape):
    x = (torch.rand(shape) + 0.1).bfloat16()
    op = getattr(hpu, f"{name}_fast_math")
    assert_near(everywhere(op, x), getattr(torch, name)(x.double()))
    with pytest.raises(RuntimeError, match="is for bfloat16"):
        op(x.float())


def test_custom_softmax_is_a_softmax():
    x = torch.randn(3, 7).bfloat16()
    assert_near(CustomSoftmax.apply(x.to("hpu"), 0).cpu(), x.double().softmax(-1))


@pytest.mark.parametrize(
    "name",
    [
        "optimizers.FusedAdamW", "movingavrg.FusedEMA", "experimental.transformer_engine",
        "normalization.FusedClipNorm", "kernels.CTCLoss", "kernels.fp8_sdpa_fwd_wrapper",
    ],
)  # fmt: skip
def test_what_is_for_training_is_said_to_be_absent(name):
    package, _, symbol = name.rpartition(".")
    with pytest.raises(ImportError, match="for training"):
        exec(f"from habana_frameworks.torch.hpex.{package} import {symbol}")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("habana_frameworks.torch.hpex.nothing")
