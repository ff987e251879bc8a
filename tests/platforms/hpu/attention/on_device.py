"""Attention and ops on the HPU of this process, with its own kernels: run by test_on_device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.attention.paged_cases import Row
from tests.platforms.hpu.attention.cases import Padding, make_case
from tests.platforms.hpu.attention.test_backend import CHUNK_ROWS, DECODE_ROWS, PROMPT_ROWS
from vllm.device.attention import AttentionSpec
from vllm.device.launch import Phase
from vllm.ops import REFERENCES
from vllm.ops.rotary import RopeTable
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.attention import AttentionSettings, HpuAttention, SliceSettings
from vllm.platforms.hpu.kernels import installed
from vllm.platforms.hpu.ops import hpu_ops

bridge.load()

# Kernels of half precision approximate the exponential, and round where the formulas do not.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
PADDING = Padding(rows=3, tokens=5, blocks=4)
GROUPED = AttentionSpec(6, 2, 24, 0.2, torch.float32)
LATENT = AttentionSpec(4, 1, 32, 0.2, torch.float32, latent_dim=24, rope_dim=8)
SPECS = {
    "grouped": GROUPED,
    "one-kv-head": replace(GROUPED, num_kv_heads=1),
    "all-kv-heads": replace(GROUPED, num_kv_heads=6),
    "window": replace(GROUPED, window=18),
    "softcap": replace(GROUPED, softcap=4.0),
    "latent": LATENT,
}
SETTINGS = {
    "default": AttentionSettings(),
    "naive": AttentionSettings(prompt="naive"),
    "float32": AttentionSettings(fp32_softmax=True),
    "fused-softmax": AttentionSettings(fused_block_softmax=True),
    "fused-merge": AttentionSettings(fused_block_adjustment=True),
    "fused-both": AttentionSettings(fused_block_softmax=True, fused_block_adjustment=True),
    "constant": AttentionSettings(const_norm=3.0),
    "fused-constant": AttentionSettings(const_norm=3.0, fused_block_softmax=True),
    "sliced": AttentionSettings(slices=SliceSettings(min_tokens=1, chunk_tokens=16)),
}


def run(backend: HpuAttention, spec: AttentionSpec, rows, phase: Phase, **shape) -> tuple:
    """(result, what it should be) of real tokens."""
    case = make_case(backend, spec, rows, phase, **shape)
    plan = case.plan(backend)
    meta = type(plan)(*(x.to("hpu") if isinstance(x, Tensor) else x for x in plan))
    given = (x.to("hpu") for x in (case.q, case.k, case.v, case.cache))
    with torch.inference_mode():
        out = backend.forward(*given, backend.expand(meta), spec).cpu()
    assert out.dtype == spec.dtype and out.isfinite().all()
    return out[case.real], case.expected


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_attention_is_exact(settings, spec, dtype):
    spec = replace(spec, dtype=dtype)
    backend = HpuAttention(replace(settings, dtype=dtype))
    tolerance = TOLERANCE[dtype]
    for rows, phase in (
        (DECODE_ROWS, Phase.DECODE),
        (PROMPT_ROWS, Phase.PREFILL),
        (CHUNK_ROWS, Phase.PREFILL),
        ((Row(60, 25),), Phase.PREFILL),
    ):
        for padding in (Padding(), PADDING):
            got, expected = run(backend, spec, rows, phase, padding=padding)
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_long_prompts_use_the_window_of_the_kernel():
    settings = AttentionSettings(
        dtype=torch.float32, window_kernel_min_tokens=32, kernel_slice_tokens=16
    )
    spec = replace(GROUPED, window=18)
    got, expected = run(HpuAttention(settings), spec, (Row(48, 48), Row(20, 20)), Phase.PREFILL)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_every_kernel_is_installed():
    found = installed()
    assert found.fused_sdpa and found.sdpa_forward and found.rms_norm and found.rotary
    assert found.mixture_of_experts and found.block_softmax and found.block_softmax_adjustment


def check(name: str, *given: object, dtype: torch.dtype) -> None:
    """An override on the device against its reference on the host."""
    on_device = [x.to("hpu") if isinstance(x, Tensor) else x for x in given]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 6e-3}[dtype]
    with torch.inference_mode():
        got, expected = hpu_ops()[name](*on_device), REFERENCES[name](*given)
    for mine, theirs in zip(
        got if isinstance(got, tuple) else (got,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert mine.dtype == theirs.dtype and mine.device.type == "hpu"
        torch.testing.assert_close(mine.cpu(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 96), (2, 3, 17), (64, 33)], ids=str)
def test_norms_match_reference(shape, dtype):
    x, residual, weight = (torch.randn(s).to(dtype) for s in (shape, shape, shape[-1:]))
    check("rms_norm", x, weight, 1e-6, dtype=dtype)
    check("gemma_rms_norm", x, weight, 1e-6, dtype=dtype)
    check("fused_add_rms_norm", x, residual, weight, 1e-6, dtype=dtype)


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 33])
@pytest.mark.parametrize("part_absent", [0.0, 0.4])
def test_experts_match_reference(part_absent, num_tokens, dtype, act):
    x = torch.randn(num_tokens, 12).to(dtype)
    w13, w2 = (torch.randn(8, 40, 12) / 4).to(dtype), (torch.randn(8, 12, 20) / 4).to(dtype)
    weights, ids = torch.rand(num_tokens, 8).topk(2)
    ids = ids.masked_fill(torch.rand(num_tokens, 2) < part_absent, -1)
    check("moe", x, w13, w2, ids, weights, act, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 64), (80, 32)])
def test_rotation_matches_reference(head_dim, rotated, style, dtype):
    inverse = 1.0 / 10000.0 ** (torch.arange(rotated // 2) / (rotated // 2))
    angles = torch.arange(200)[:, None] * inverse
    table = RopeTable(angles.cos(), angles.sin(), inverse, 1.0)
    positions = (torch.arange(7) * 29).int()
    q, k = torch.randn(7, 3, head_dim).to(dtype), torch.randn(7, 2, head_dim).to(dtype)
    ops = hpu_ops()
    moved = RopeTable(*(x.to("hpu") if isinstance(x, Tensor) else x for x in table))
    rows = ops["rope_rows"](moved, positions.to("hpu"), style)
    got = ops["rotary"](q.to("hpu"), k.to("hpu"), *rows, style)
    expected = REFERENCES["rotary"](q, k, *REFERENCES["rope_rows"](table, positions, style), style)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=tolerance, atol=tolerance)
