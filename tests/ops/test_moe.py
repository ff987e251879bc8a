"""Mixture of experts against one token at a time."""

from __future__ import annotations

import pytest
import torch

from tests.ops.overrides import Override, isas
from vllm.ops import REFERENCES, resolve
from vllm.ops.moe import GATED_ACTIVATIONS


def packed_moe(x, w13, w2, ids, weights, act):
    pack, inner = torch.ops.vllm.pack_weight, w2.shape[2]
    w13 = torch.stack([pack(one, True) for one in w13])
    w2 = torch.stack([pack(one) for one in w2])
    return torch.ops.vllm.packed_moe(x, w13, w2, ids, weights, inner, act)


PACKED = [Override(isa, packed_moe) for isa in isas()]


@pytest.mark.parametrize("act", GATED_ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "experts", "top_k"), [(0, 4, 2), (1, 4, 4), (33, 8, 2)])
def test_every_token_gets_the_weighted_sum_of_its_experts(num_tokens, experts, top_k, act):
    generator = torch.Generator().manual_seed(experts)
    hidden, inner = 12, 20
    x = torch.randn(num_tokens, hidden, generator=generator)
    w13 = torch.randn(experts, 2 * inner, hidden, generator=generator) / 4
    w2 = torch.randn(experts, hidden, inner, generator=generator) / 4
    scores = torch.rand(num_tokens, experts, generator=generator)
    weights, ids = scores.topk(top_k)
    expected = torch.zeros(num_tokens, hidden)
    for t in range(num_tokens):
        for j in range(top_k):
            expert = int(ids[t, j])
            mlp = GATED_ACTIVATIONS[act](w13[expert] @ x[t])
            expected[t] += weights[t, j] * (w2[expert] @ mlp)
    for moe in (REFERENCES["moe"], *PACKED):
        got = moe(x, w13, w2, ids.int(), weights, act)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("override", PACKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_matches_reference(override, dtype):
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x, w13, w2 = rand(9, 17), rand(4, 26, 17), rand(4, 17, 13)
    ids = torch.randint(0, 4, (9, 2), generator=generator)
    weights = torch.rand(9, 2, generator=generator)
    expected = REFERENCES["moe"](x, w13, w2, ids, weights, "silu")
    got = override(x, w13, w2, ids, weights, "silu")
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=0.3)


def test_wrong_routing_is_refused():
    x, w13, w2 = torch.zeros(1, 4), torch.zeros(2, 6, 4), torch.zeros(2, 4, 3)
    weights = torch.ones(1, 1)
    for override in PACKED:
        with pytest.raises(RuntimeError, match="topk_ids has 2, there are 2 experts"):
            override(x, w13, w2, torch.tensor([[2]]), weights, "silu")
        with pytest.raises(RuntimeError, match="act must be"):
            override(x, w13, w2, torch.tensor([[1]]), weights, "relu")


def test_overrides_replace_references_and_unknown_names_are_refused():
    table = resolve({"moe": len})
    assert table.moe is len
    assert table.rms_norm is REFERENCES["rms_norm"]
    with pytest.raises(AssertionError, match="no_such_op"):
        resolve({"no_such_op": len})
    with pytest.raises(AttributeError, match="no op named 'rms'"):
        _ = table.rms
