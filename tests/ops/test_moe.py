"""Mixture of experts against one token at a time."""

from __future__ import annotations

import pytest
import torch

from tests.ops.overrides import Override, isas, overrides_of
from vllm.ops import REFERENCES, resolve
from vllm.ops.moe import GATED_ACTIVATIONS, Routing


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


@pytest.mark.parametrize("num_tokens", [1, 33])
def test_choices_that_are_not_here_add_nothing(num_tokens):
    """As if they had the weight 0; a token with no other choice gets exact zeros."""
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, 12, generator=generator)
    w13 = torch.randn(4, 40, 12, generator=generator) / 4
    w2 = torch.randn(4, 12, 20, generator=generator) / 4
    weights, ids = torch.rand(num_tokens, 4, generator=generator).topk(3)
    elsewhere = torch.rand(num_tokens, 3, generator=generator) < 0.5
    elsewhere[0] = True
    for absent in (elsewhere, torch.ones_like(elsewhere)):
        expected = REFERENCES["moe"](x, w13, w2, ids, weights.masked_fill(absent, 0.0), "silu")
        for moe in (REFERENCES["moe"], *PACKED):
            got = moe(x, w13, w2, ids.masked_fill(absent, -1), weights, "silu")
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(got[absent.all(1)], torch.zeros(int(absent.all(1).sum()), 12))


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


@pytest.mark.parametrize("override", PACKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("absent", [0, 1])  # of the experts, as another rank's
def test_a_token_does_not_depend_on_the_other_tokens(override, dtype, absent):
    generator = torch.Generator().manual_seed(2)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x, w13, w2 = rand(40, 33), rand(5, 140, 33), rand(5, 33, 70)
    ids = torch.rand(40, 5, generator=generator).argsort(-1)[:, :3] - absent
    weights = torch.rand(40, 3, generator=generator)
    together = override(x, w13, w2, ids, weights, "silu")
    assert together.dtype == dtype
    for rows in (1, 2, 7):
        alone = override(x[:rows], w13, w2, ids[:rows], weights[:rows], "silu")
        assert torch.equal(alone, together[:rows])


@pytest.mark.parametrize("override", PACKED, ids=str)
def test_tokens_may_be_part_of_a_wider_tensor(override):
    x, w13, w2 = torch.randn(3, 20), torch.randn(2, 6, 5), torch.randn(2, 5, 3)
    ids, weights = torch.tensor([[0, 1], [1, 0], [1, 1]]), torch.rand(3, 2)
    for some in (x[:, 4:9], x[:, ::4]):
        got = override(some, w13, w2, ids, weights, "silu")
        assert torch.equal(got, override(some.contiguous(), w13, w2, ids, weights, "silu"))


CHOOSERS = overrides_of("choose_experts")
ROUTINGS = [
    Routing(1, 1),
    Routing(7, 7, scale=2.5),
    Routing(8, 3, renormalise=True),
    Routing(60, 4, "sigmoid", renormalise=True),
    Routing(64, 6, groups=8, top_groups=3, scale=16.0),
    Routing(12, 2, "sigmoid", correction=True),
    Routing(32, 8, "sigmoid", True, groups=8, top_groups=4, correction=True, scale=2.5),
    Routing(9, 5, groups=3, top_groups=1),  # only three experts are left for five places
]


@pytest.mark.parametrize("override", CHOOSERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 300])
def test_chosen_experts_match_reference(override, dtype, routing, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    count = routing.num_experts
    # All of a row different: of equals the reference may choose any.
    order = torch.rand(num_tokens, count, generator=generator).argsort(-1)
    logits = ((order - count / 2) / 8).to(dtype)
    correction = torch.randn(count, generator=generator) if routing.correction else None
    weights, ids = override(logits, correction, routing)
    expected, expected_ids = REFERENCES["choose_experts"](logits, correction, routing)
    assert ids.dtype == torch.int64 and weights.dtype == torch.float32
    open_experts = count // routing.groups * routing.top_groups
    assert torch.equal(ids[:, :open_experts], expected_ids[:, :open_experts])
    if routing.top_k <= open_experts:
        torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("override", CHOOSERS, ids=str)
def test_of_equally_good_experts_the_first_are_chosen(override):
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 2.0], [0.0] * 6, [-torch.inf] * 5 + [0.0]])
    _, ids = override(logits, None, Routing(6, 4))
    assert ids.tolist() == [[1, 3, 5, 0], [0, 1, 2, 3], [5, 0, 1, 2]]
    _, ids = override(logits[:2], None, Routing(6, 2, groups=3, top_groups=2))
    assert ids.tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize("override", CHOOSERS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_scores_that_are_not_numbers_choose_experts_that_exist(override, value):
    logits = torch.zeros(2, 8)
    logits[1, 5] = value
    for routing in (Routing(8, 3), Routing(8, 3, "sigmoid", True, groups=4, top_groups=2)):
        weights, ids = override(logits, None, routing)
        assert all(len(set(row)) == 3 and set(row) <= set(range(8)) for row in ids.tolist())
        assert weights[0].isfinite().all()


@pytest.mark.parametrize("override", CHOOSERS, ids=str)
@pytest.mark.parametrize(
    ("num_corrections", "routing", "text"),
    [
        (None, Routing(6, 7), "top_k must be 1 to 6, is 7"),
        (None, Routing(6, 2, groups=4), "groups must divide the 6 experts, is 4"),
        (None, Routing(6, 2, groups=3, top_groups=4), "top_groups must be 1 to 3, is 4"),
        (6, Routing(6, 2, groups=6), "groups must have two experts"),
        (5, Routing(6, 2), "correction must have size 6"),
    ],
)
def test_wrong_choices_are_refused(override, num_corrections, routing, text):
    correction = None if num_corrections is None else torch.zeros(num_corrections)
    with pytest.raises(RuntimeError, match=text):
        override(torch.zeros(2, 6), correction, routing)


@pytest.mark.parametrize("override", PACKED, ids=str)
def test_wrong_routing_is_refused(override):
    x, w13, w2 = torch.zeros(1, 4), torch.zeros(2, 6, 4), torch.zeros(2, 4, 3)
    weights = torch.ones(1, 1)
    with pytest.raises(RuntimeError, match="topk_ids has 2, there are 2 experts"):
        override(x, w13, w2, torch.tensor([[2]]), weights, "silu")
    with pytest.raises(RuntimeError, match="topk_ids has -2, there are 2 experts"):
        override(x, w13, w2, torch.tensor([[-2]]), weights, "silu")
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
