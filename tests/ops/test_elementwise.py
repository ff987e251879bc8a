"""Norms, gated activations and rotary embedding: overrides against references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.overrides import PLATFORM, overrides_of
from vllm.ops import REFERENCES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half-precision results may differ by one unit in the last place where rounding is a close call.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SHAPES = [(0, 96), (1, 1), (7, 96), (256, 33), (3, 15), (2, 3, 17), (5, 2048), (64,)]


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_matches(got: Tensor, expected: Tensor, slack: float = 1.0) -> None:
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE[expected.dtype] * slack
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["rms_norm", "gemma_rms_norm"])
def test_norms_match_reference(name, shape, dtype):
    x, weight = rand(*shape, dtype=dtype), rand(shape[-1], dtype=dtype)
    for override in overrides_of(name):
        assert_matches(override(x, weight, 1e-6), REFERENCES[name](x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("override", overrides_of("fused_add_rms_norm"), ids=str)
def test_fused_norm_matches_reference_and_leaves_inputs_alone(override, shape, dtype):
    x, residual, weight = rand(*shape, dtype=dtype), rand(*shape, dtype=dtype), rand(shape[-1])
    weight = weight.to(dtype)
    before = x.clone(), residual.clone()
    normed, total = override(x, residual, weight, 1e-5)
    expected, expected_total = REFERENCES["fused_add_rms_norm"](x, residual, weight, 1e-5)
    assert_matches(normed, expected)
    assert torch.equal(total, expected_total)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("override", overrides_of("fused_add_rms_norm"), ids=str)
def test_sums_of_all_half_precision_numbers_are_rounded_as_by_torch(override, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()].reshape(-1, 64)  # subnormal numbers too
    for residual in (every.roll(1), every.roll(129), every / 3):
        _, total = override(every, residual, torch.ones(64, dtype=dtype), 1e-5)
        assert torch.equal(total, (every.float() + residual.float()).to(dtype))


@pytest.mark.parametrize("override", overrides_of("rms_norm"), ids=str)
def test_norm_of_heads_inside_a_fused_projection(override):
    qkv = rand(9, 8 * 20)
    heads = qkv[:, 40:120].view(9, 4, 20)
    weight = rand(20)
    assert_matches(override(heads, weight, 1e-6), REFERENCES["rms_norm"](heads, weight, 1e-6))


@pytest.mark.parametrize("override", overrides_of("rms_norm"), ids=str)
def test_norm_of_large_values_does_not_overflow_half_precision(override):
    x = torch.full((2, 64), 6e4, dtype=torch.float16)
    assert_matches(override(x, torch.ones(64, dtype=torch.float16), 1e-6), torch.ones_like(x))


def test_reference_norm_reproduces_the_cast_order_of_transformers():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for dtype in DTYPES:
        norm = LlamaRMSNorm(96, eps=1e-6).to(dtype)
        norm.weight.data.copy_(rand(96))
        x = rand(7, 96, dtype=dtype)
        assert torch.equal(REFERENCES["rms_norm"](x, norm.weight, 1e-6), norm(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 32), (1, 2), (7, 30), (64, 130), (2, 3, 34)], ids=str)
@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_tanh_and_mul"])
def test_gated_activations_match_reference(name, shape, dtype):
    x = (rand(*shape) * 4).to(dtype)
    # 1 + tanh(x) cancels for x < 0: both results are then a few units off the exact one.
    slack = 4 if name.startswith("gelu") else 1
    for override in overrides_of(name):
        assert_matches(override(x), REFERENCES[name](x), slack)


@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_tanh_and_mul"])
def test_gates_far_from_zero_saturate(name):
    gate = torch.tensor([-1e4, -100.0, -88.5, -20.0, -0.0, 20.0, 88.5, 100.0, 1e4])
    x = torch.cat((gate, torch.ones(9))).unsqueeze(0)
    for override in overrides_of(name):
        assert_matches(override(x), REFERENCES[name](x))


@pytest.mark.parametrize("override", overrides_of("silu_and_mul"), ids=str)
def test_exponential_is_accurate_to_a_few_units_in_the_last_place(override):
    gate = torch.linspace(-80, 80, 20001)
    x = torch.cat((gate, torch.ones_like(gate))).unsqueeze(0)
    exact = torch.nn.functional.silu(gate.double())
    error = ((override(x)[0].double() - exact) / exact).abs()[gate != 0]
    assert error.max() < 4 * 2.0**-24


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize("head_dim,rotated", [(64, 64), (48, 48), (20, 12), (6, 2), (8, 0)])
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
def test_rotary_matches_reference(num_tokens, head_dim, rotated, style, dtype):
    q = rand(num_tokens, 6 * head_dim, dtype=dtype)[:, : 4 * head_dim].view(num_tokens, 4, head_dim)
    k = rand(num_tokens, 1, head_dim, dtype=dtype)
    angle = rand(num_tokens, rotated // 2)
    for angles in ((angle.cos(), angle.sin()), (angle.cos().to(dtype), angle.sin().to(dtype))):
        for override in overrides_of("rotary"):
            got = override(q, k, *angles, style)
            for mine, reference in zip(
                got, REFERENCES["rotary"](q, k, *angles, style), strict=True
            ):
                assert_matches(mine, reference)


def test_rotary_by_no_angle_changes_nothing():
    q, k = rand(3, 2, 8), rand(3, 1, 8)
    one, zero = torch.ones(3, 4), torch.zeros(3, 4)
    for style in ("neox", "interleaved"):
        got_q, got_k = REFERENCES["rotary"](q, k, one, zero, style)
        assert torch.equal(got_q, q) and torch.equal(got_k, k)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("rms_norm", (rand(2, 8), rand(9), 1e-6), "weight must have size 8"),
        ("rms_norm", (rand(2, 8).double(), rand(8).double(), 1e-6), "x must be float32"),
        ("rms_norm", (rand(2, 8), rand(8).half(), 1e-6), "weight must be Float"),
        ("silu_and_mul", (rand(2, 7),), "x must be even"),
        ("fused_add_rms_norm", (rand(2, 8), rand(1, 8), rand(8), 1e-6), "residual must have x's"),
        (
            "rotary",
            (rand(2, 1, 8), rand(2, 1, 8), rand(2, 5), rand(2, 5), "neox"),
            "cos rotates 10",
        ),
        ("rotary", (rand(2, 1, 8), rand(2, 1, 8), rand(2, 4), rand(2, 4), "gpt"), "style must be"),
        ("rotary", (rand(2, 1, 8), rand(3, 1, 8), rand(2, 4), rand(2, 4), "neox"), "k must have"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, message):
    if name not in PLATFORM.ops():
        pytest.skip("native kernels are not built")
    with pytest.raises(RuntimeError, match=message):
        PLATFORM.ops()[name](*arguments)


@pytest.mark.parametrize("override", overrides_of("normed_rotary"), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize(("head_dim", "half"), [(16, 8), (20, 6), (128, 64)])
def test_heads_are_normalised_before_they_are_rotated(override, dtype, style, head_dim, half):
    qkv = rand(5, 6 * head_dim, dtype=dtype)
    q, k = qkv[:, : 4 * head_dim].view(5, 4, -1), qkv[:, 4 * head_dim :].view(5, 2, -1)
    weights = rand(head_dim, dtype=dtype), rand(head_dim, dtype=dtype) + 1
    angles = rand(5, half), rand(5, half) / 2
    got = override(q, k, *weights, 1e-6, *angles, style)
    expected = REFERENCES["normed_rotary"](q, k, *weights, 1e-6, *angles, style)
    for ours, theirs in zip(got, expected, strict=True):
        assert_matches(ours, theirs, slack=4.0)


@pytest.mark.parametrize("override", overrides_of("normed_rotary"), ids=str)
def test_heads_too_long_to_be_normalised_and_rotated_are_refused(override):
    q, weight, angles = torch.zeros(1, 1, 2048), torch.ones(2048), torch.zeros(1, 8)
    with pytest.raises(RuntimeError, match="at most 1024"):
        override(q, q, weight, weight, 1e-6, angles, angles, "neox")
