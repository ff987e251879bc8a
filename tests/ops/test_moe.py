"""Mixture of experts against one token at a time."""

from __future__ import annotations

import pytest
import torch

from vllm.ops import REFERENCES, resolve
from vllm.ops.moe import GATED_ACTIVATIONS


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
    got = REFERENCES["moe"](x, w13, w2, ids.int(), weights, act)
    expected = torch.zeros(num_tokens, hidden)
    for t in range(num_tokens):
        for j in range(top_k):
            expert = int(ids[t, j])
            mlp = GATED_ACTIVATIONS[act](w13[expert] @ x[t])
            expected[t] += weights[t, j] * (w2[expert] @ mlp)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_overrides_replace_references_and_unknown_names_are_refused():
    table = resolve({"moe": len})
    assert table.moe is len
    assert table.rms_norm is REFERENCES["rms_norm"]
    with pytest.raises(AssertionError, match="no_such_op"):
        resolve({"no_such_op": len})
    with pytest.raises(AttributeError, match="no op named 'rms'"):
        _ = table.rms
