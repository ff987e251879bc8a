"""Kernels within compiled regions, and what each is as an op. Eager mode."""

from __future__ import annotations

import torch
from habana_frameworks.torch.hpex.kernels import FusedSDPA, fp8_fused_sdpa
from habana_frameworks.torch.hpex.kernels.RotaryPosEmbeddingHelper import apply_rotary_pos_emb
from habana_frameworks.torch.hpex.normalization import FusedRMSNorm
from hpu_emulator import recipes

hpu = torch.ops.hpu
E4M3 = torch.float8_e4m3fn


def attention(x, cos, sin):
    q = apply_rotary_pos_emb(x, cos, sin).view(1, -1, 2, 8).transpose(1, 2)
    return FusedSDPA.apply(q, q, q, None, 0.0, True, None, "fast", True)


def fp8_attention(x, cos, sin):
    q = hpu.cast_to_fp8_v2(x.view(1, -1, 2, 8), 4.0, False, False, E4M3)[0].transpose(1, 2)
    return fp8_fused_sdpa(q, q, q, None, 0.0, True, None, "fast", cos[0, 0, 0], is_amax_s=True)[0]


def linear(x, cos, sin):
    normed = FusedRMSNorm.apply(x.flatten(1), cos.flatten()[:16], 1e-5)
    scale = hpu.calculate_scale_for_cast(normed, 2, 1, -1, True, 240.0, 1.0)
    codes = hpu.cast_to_fp8_v2(normed, 1.0 / scale, False, False, E4M3)[0]
    return hpu.fp8_gemm_v2(codes, False, codes, True, None, torch.bfloat16, scale, None)


def experts(x, cos, sin):
    flat = x.flatten(1)
    codes, scale = hpu.cast_to_fp8_just_in_time(flat, [1, 16], E4M3, torch.float32)
    weight = hpu.cast_to_fp8_v2(flat.tile(2, 1)[:8], None, False, False, E4M3)[0]
    table = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
    one = torch.ones((), device=x.device)
    return hpu.mixture_of_experts.fp8_fused_weights_dynamic(
        hidden_states=codes, expert_routing_table=table,
        router_weights=torch.ones(x.shape[0], 1, dtype=torch.bfloat16, device=x.device),
        w12=[weight], w3=[weight[:4].t().contiguous()], d_scale_hidden_states=scale,
        d_scale_w12=[one], d_scale_w3=[one], permuted_weights=True, activation="silu",
        experts_min=0, experts_max=0,
    )  # fmt: skip


def blocks(x, cos, sin):
    scores = x.view(-1, 1, 1, 2, 8)
    groups = torch.zeros(scores.shape[0], dtype=torch.int64, device=x.device)
    weights, peak, total = hpu.block_softmax(scores, torch.zeros_like(scores), groups)
    shape = [*scores.shape[:-1], 1]
    return weights * hpu.block_softmax_adjustment(peak, total, groups, 1, shape)


def everything(x, cos, sin):
    return [part(x, cos, sin) for part in (attention, fp8_attention, linear, experts, blocks)]


def test_kernels_trace_as_one_graph_and_are_one_recipe_per_shape():
    torch._dynamo.reset()
    compiled = torch.compile(
        everything,
        backend="hpu_backend",
        fullgraph=True,
        dynamic=True,
        options={"force_static_compile": True},
    )
    grown = []
    for num_tokens in (4, 6, 6, 4):
        torch.manual_seed(num_tokens)
        x = torch.randn(num_tokens, 2, 8).to("hpu")
        cos, sin = (torch.rand(num_tokens, 1, 8).to("hpu") for _ in range(2))
        before = recipes.count()
        with torch.inference_mode():
            found = compiled(x, cos, sin)
        grown.append(recipes.count() - before)
        for ours, theirs in zip(found, everything(x, cos, sin), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours.float().cpu(), theirs.float().cpu())
    assert grown == [1, 1, 0, 0]


def test_a_kernel_is_one_op_whose_results_are_memory_of_their_own():
    x = torch.randn(3, 4).to("hpu")
    launched = recipes.launches()
    scale = hpu.calculate_scale_for_cast(x, 0, 0)
    assert recipes.launches() == launched + 1
    assert scale.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(scale.cpu(), x.cpu())


def test_a_lone_scale_may_stay_on_the_host():
    x = torch.randn(3, 4).to("hpu")
    found = hpu.cast_to_fp8_v2(x, torch.tensor(2.0), False, False, E4M3)[0]
    wanted = hpu.cast_to_fp8_v2(x, 2.0, False, False, E4M3)[0]
    assert torch.equal(found.cpu().float(), wanted.cpu().float())
    product = hpu.fp8_gemm_v2(
        found, False, found, True, None, torch.float32, torch.tensor(0.5), torch.tensor(0.5)
    )
    assert torch.equal(
        product.cpu(),
        hpu.fp8_gemm_v2(found, False, found, True, None, torch.float32, 0.5, 0.5).cpu(),
    )
