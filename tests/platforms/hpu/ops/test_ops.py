"""Overrides of ops on HPU against their references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.platforms.hpu.kernel_doubles import Calls, kernels
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.ops import REFERENCES
from vllm.ops.moe import GATED_ACTIVATIONS
from vllm.ops.rotary import RopeTable
from vllm.platforms.hpu.kernels import Kernels
from vllm.platforms.hpu.ops import FusedMoE, FusedRotary, MoESettings, dense_moe, hpu_ops
from vllm.platforms.hpu.ops.moe import moe_settings

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The kernels round once where references round twice.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
SHAPES = [(0, 96), (1, 1), (7, 96), (256, 33), (2, 3, 17), (5, 2048)]
OPS = hpu_ops(kernels())


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_matches(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["rms_norm", "gemma_rms_norm"])
def test_norms_match_reference(name, shape, dtype):
    x, weight = rand(*shape, dtype=dtype), rand(shape[-1], dtype=dtype)
    assert_matches(OPS[name](x, weight, 1e-6), REFERENCES[name](x, weight, 1e-6))
    strided = rand(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., : shape[-1]]
    assert_matches(OPS[name](strided, weight, 1e-6), REFERENCES[name](strided, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_norm_matches_reference_and_leaves_inputs_alone(dtype):
    x, residual, weight = rand(7, 96, dtype=dtype), rand(9, 96, dtype=dtype)[2:], rand(96).to(dtype)
    before = x.clone(), residual.clone()
    got = OPS["fused_add_rms_norm"](x, residual, weight, 1e-6)
    expected = REFERENCES["fused_add_rms_norm"](x, residual, weight, 1e-6)
    for mine, theirs in zip(got, expected, strict=True):
        assert_matches(mine, theirs)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def rope_table(length: int, half: int, fixed: bool = True) -> RopeTable:
    inverse = 1.0 / 10000.0 ** (torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * inverse
    scale = 1.25
    kept = inverse if fixed else torch.empty(0)
    return RopeTable(angles.cos() * scale, angles.sin() * scale, kept, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize(
    ("num_tokens", "head_dim", "rotated"), [(0, 8, 8), (7, 64, 64), (5, 80, 32)]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_rotation_matches_reference(num_tokens, head_dim, rotated, style, dtype, recompute):
    table = rope_table(200, rotated // 2)
    positions = (torch.arange(num_tokens) * 37 % 200).int()
    fused = rand(num_tokens, 5 * head_dim, dtype=dtype)
    q = fused[:, : 3 * head_dim].view(num_tokens, 3, head_dim)
    k = fused[:, 3 * head_dim :].view(num_tokens, 2, head_dim)
    kernel = kernels().rotary
    assert kernel is not None
    ours = FusedRotary(kernel, recompute)
    got = ours.rotary(q, k, *ours.rope_rows(table, positions, style), style)
    rows = REFERENCES["rope_rows"](table, positions, style)
    for mine, theirs in zip(got, REFERENCES["rotary"](q, k, *rows, style), strict=True):
        assert_matches(mine, theirs)


def test_rotations_that_frequencies_do_not_give_are_looked_up_all_the_same():
    table = rope_table(50, 4, fixed=False)
    rotary = FusedRotary(kernels().rotary, recompute=True)
    cos, sin = rotary.rope_rows(table, torch.tensor([3, 49], dtype=torch.int32), "neox")
    assert torch.equal(cos[:, 0, :4], table.cos[[3, 49]]) and cos.shape == (2, 1, 8)
    assert torch.equal(sin[:, 0, 4:], table.sin[[3, 49]])


def experts(
    num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    hidden, inner = 12, 20
    x = rand(num_tokens, hidden, dtype=dtype)
    w13 = (rand(num_experts, 2 * inner, hidden) / 4).to(dtype)
    w2 = (rand(num_experts, hidden, inner) / 4).to(dtype)
    scores = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(1))
    weights, ids = scores.topk(top_k)
    return x, w13, w2, ids, weights


@pytest.mark.parametrize("act", GATED_ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 4, 4), (3, 40, 2), (33, 8, 2), (600, 40, 3)]
)
def test_experts_match_reference(num_tokens, num_experts, top_k, dtype, act):
    given = experts(num_tokens, num_experts, top_k, dtype)
    expected = REFERENCES["moe"](*given, act)
    for moe in (OPS["moe"], dense_moe):
        got = moe(*given, act)
        assert got.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 6e-3}[dtype]
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("act", GATED_ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(3, 40), (33, 8)])
def test_choices_that_are_not_here_add_nothing(num_tokens, num_experts, act):
    x, w13, w2, ids, weights = experts(num_tokens, num_experts, 3, torch.float32)
    absent = torch.rand(num_tokens, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    absent[0] = True
    ids = ids.masked_fill(absent, -1)
    expected = REFERENCES["moe"](x, w13, w2, ids, weights, act)
    for moe in (OPS["moe"], dense_moe):
        got = moe(x, w13, w2, ids, weights, act)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert got[0].tolist() == [0.0] * 12


def test_the_kernel_gets_choices_that_are_not_here_above_its_experts():
    calls = Calls()
    x, w13, w2, ids, weights = experts(5, 10, 2, torch.float32)
    ids[2] = -1
    FusedMoE(kernels(calls).mixture_of_experts)(x, w13, w2, ids, weights, "silu")
    table = calls.experts[0]["expert_routing_table"]
    assert table[2].tolist() == [10, 10] and table.min() >= 0


def run_experts(settings: MoESettings, num_tokens: int = 5) -> tuple[Calls, int]:
    """Calls of the kernel, and how often the graph was ended."""
    calls, ends = Calls(), []
    moe = FusedMoE(kernels(calls).mixture_of_experts, settings, lambda: ends.append(1))
    given = experts(num_tokens, 10, 2, torch.float32)
    expected = REFERENCES["moe"](*given, "silu")
    torch.testing.assert_close(moe(*given, "silu"), expected, rtol=1e-5, atol=1e-5)
    weights = calls.experts[0]["w12"][1]
    assert weights.untyped_storage().data_ptr() == given[1].untyped_storage().data_ptr()
    return calls, len(ends)


def test_experts_are_given_to_the_kernel_in_slices():
    calls, ends = run_experts(MoESettings(experts_per_call=4))
    assert [(c["experts_min"], c["experts_max"]) for c in calls.experts] == [(0, 3), (4, 7), (8, 9)]
    assert ends == 3
    calls, ends = run_experts(MoESettings())
    assert len(calls.experts) == 1 and ends == 0 and "chunk_size" not in calls.experts[0]


@pytest.mark.parametrize(("num_tokens", "chunk"), [(1, 64), (4, 64), (5, 256), (99, 256)])
def test_chunks_of_the_kernel_follow_the_number_of_tokens(num_tokens, chunk):
    calls, _ = run_experts(MoESettings((64, 256), (4, 32)), num_tokens)
    assert calls.experts[0]["chunk_size"] == chunk and calls.experts[0]["total_experts"] == 10


@pytest.mark.parametrize(("chunks", "boundaries"), [("1,2", "5"), ("1,2", "9,4"), ("", "3")])
def test_chunks_without_their_boundaries_are_refused(chunks, boundaries):
    env = Environment({"VLLM_MOE_CHUNK": chunks, "VLLM_MOE_TOKEN_BOUNDARY": boundaries})
    with pytest.raises(ConfigError, match="as many chunk sizes as boundaries"):
        moe_settings(env)


def test_settings_of_experts_come_from_the_environment():
    env = Environment(
        {
            "VLLM_MOE_CHUNK": "64,128",
            "VLLM_MOE_TOKEN_BOUNDARY": "16, 512",
            "MAX_EXPERTS_PER_SLICE": "32",
        }
    )
    assert moe_settings(env) == MoESettings((64, 128), (16, 512), 32)
    assert moe_settings(Environment({})) == MoESettings()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_gelu_is_not_left_to_the_device(dtype):
    x = rand(9, 34, dtype=dtype) * 3
    assert_matches(OPS["gelu_and_mul"](x), REFERENCES["gelu_and_mul"](x))


def test_without_kernels_only_ops_that_ask_the_device_are_replaced():
    assert set(hpu_ops(Kernels())) == {"moe", "gelu_and_mul"}
    assert set(OPS) <= set(REFERENCES)
