import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.layers.conftest import allocated
from tests.ops.overrides import PLATFORM, isas
from vllm.errors import LoadError
from vllm.layers.moe import Experts, MoE, Router
from vllm.layers.weights import ELSEWHERE
from vllm.loader.filler import Filler
from vllm.loader.rules import RuleTable
from vllm.models.decoder import GATED_NAMES, experts_weights
from vllm.ops import resolve
from vllm.ops.moe import Routing

HIDDEN, EXPERTS, WIDTH = 8, 8, 6


def router(make_context, dtype=torch.float32, **fields) -> Router:
    torch.manual_seed(0)
    made = allocated(Router(Routing(EXPERTS, 3, **fields), HIDDEN, make_context(dtype=dtype)))
    for destination in made.destinations():
        destination.fill(torch.randn(destination.shape))
    made.finish()
    return made


def weight_of(made: Router) -> torch.Tensor:
    return made.method.look_up(made, torch.arange(EXPERTS))


def test_renormalised_weights_sum_to_the_scale(make_context):
    weights, ids = router(make_context, renormalise=True, scale=2.5)(torch.randn(5, HIDDEN))
    torch.testing.assert_close(weights.sum(-1), torch.full((5,), 2.5))
    assert all(len(set(row)) == 3 for row in ids.tolist())


def test_weights_are_plain_probabilities_otherwise(make_context):
    made, x = router(make_context), torch.randn(5, HIDDEN)
    weights, ids = made(x)
    probabilities = (x @ weight_of(made).T).softmax(-1)
    torch.testing.assert_close(weights, probabilities.gather(1, ids))
    torch.testing.assert_close(weights, probabilities.topk(3).values)


@pytest.mark.parametrize("correction", [False, True])
def test_experts_come_from_the_best_groups_only(make_context, correction):
    made = router(
        make_context, groups=4, top_groups=2, correction=correction, score="sigmoid", wide=True
    )
    x = torch.randn(50, HIDDEN)
    scores = (x @ weight_of(made).T).sigmoid()
    choice = scores + made.correction if correction else scores
    _, ids = made(x)
    for row, chosen in zip(choice.view(50, 4, 2), ids.tolist(), strict=True):
        quality = row.sum(-1) if correction else row.max(-1).values
        assert {i // 2 for i in chosen} <= set(quality.topk(2).indices.tolist())


def test_a_correction_takes_part_in_the_choice_but_not_in_the_weights(make_context):
    made = router(make_context, correction=True, score="sigmoid")
    made.correction.data.zero_()[5] = 100.0
    x = torch.randn(4, HIDDEN)
    weights, ids = made(x)
    assert (ids == 5).any(-1).all()
    assert weights.max() <= 1.0


def test_a_wide_router_multiplies_in_float32(make_context):
    x = torch.randn(5, HIDDEN).bfloat16()
    made = router(make_context, torch.bfloat16, wide=True)
    weights, ids = made(x)
    probabilities = (x.float() @ weight_of(made).T).softmax(-1)
    torch.testing.assert_close(weights, probabilities.gather(1, ids))
    narrow, _ = router(make_context, torch.bfloat16)(x)
    assert narrow.dtype == torch.float32 and not torch.equal(narrow, weights)


def test_experts_load_one_by_one_or_all_in_one_tensor(make_context):
    one_by_one = {}
    for e in range(EXPERTS):
        one_by_one[f"e.{e}.gate_proj.weight"] = torch.randn(WIDTH, HIDDEN)
        one_by_one[f"e.{e}.up_proj.weight"] = torch.randn(WIDTH, HIDDEN)
        one_by_one[f"e.{e}.down_proj.weight"] = torch.randn(HIDDEN, WIDTH)

    def stacked(name):
        return torch.stack([one_by_one[f"e.{e}.{name}.weight"] for e in range(EXPERTS)])

    together = {
        "e.gate_up_proj": torch.cat((stacked("gate_proj"), stacked("up_proj")), 1),
        "e.down_proj": stacked("down_proj"),
    }
    loaded = []
    for tensors in (one_by_one, together):
        block = allocated(MoE(Routing(EXPERTS, 2), HIDDEN, WIDTH, "silu", make_context()))
        rules = RuleTable(experts_weights("e", "x", GATED_NAMES), ())
        filler = Filler(_Named(block.experts), rules)
        for name, tensor in tensors.items():
            filler.add(name, tensor)
        filler.finish()
        loaded.append(block.experts)
    assert torch.equal(loaded[0].w13, loaded[1].w13)
    assert torch.equal(loaded[0].w2, loaded[1].w2)
    gate, up, down = (
        one_by_one[f"e.3.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")
    )
    x = torch.randn(2, HIDDEN)
    ids, weights = torch.full((2, 1), 3), torch.ones(2, 1)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(loaded[0](x, weights, ids), expected)


class _Named(torch.nn.Module):
    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.x = experts


def filled(context, whole) -> Experts:
    experts = allocated(MoE(Routing(EXPERTS, 2), HIDDEN, WIDTH, "silu", context)).experts
    filler = Filler(_Named(experts), RuleTable(experts_weights("e", "x", GATED_NAMES), ()))
    for name, tensor in whole.items():
        filler.add(name, tensor)
    filler.finish()
    return experts


@pytest.fixture
def whole():
    return {
        "e.gate_up_proj": torch.randn(EXPERTS, 2 * WIDTH, HIDDEN),
        "e.down_proj": torch.randn(EXPERTS, HIDDEN, WIDTH),
    }


@pytest.mark.parametrize(
    ("size", "placement"),
    [(2, ""), *itertools.product((2, 3, 8), ("linear", "round_robin"))],
)
def test_shares_of_experts_sum_to_the_whole(make_context, whole, size, placement):
    x, ids = torch.randn(5, HIDDEN), torch.randint(0, EXPERTS, (5, 2))
    weights = torch.rand(5, 2)
    shares = [
        filled(make_context(rank, size, placement=placement), whole)(x, weights, ids)
        for rank in range(size)
    ]
    expected = filled(make_context(), whole)(x, weights, ids)
    torch.testing.assert_close(sum(shares), expected)


@pytest.mark.parametrize(
    ("placement", "owned"),
    [
        ("linear", [(0, 1, 2), (3, 4, 5), (6, 7)]),
        ("round_robin", [(0, 3, 6), (1, 4, 7), (2, 5)]),
    ],
)
def test_a_rank_holds_its_own_experts_only(make_context, whole, placement, owned):
    everything = filled(make_context(), whole)
    for rank, numbers in enumerate(owned):
        experts = filled(make_context(rank, 3, placement=placement), whole)
        assert experts.shard.owned == numbers
        assert torch.equal(experts.w13, everything.w13[list(numbers)])
        assert torch.equal(experts.w2, everything.w2[list(numbers)])
        assert [experts.local_ids[number] for number in numbers] == list(range(len(numbers)))
        # The last one is of rows that choose none.
        assert (experts.local_ids == -1).sum() == EXPERTS - len(numbers) + 1
        assert experts.local_ids[experts.no_expert] == -1


def test_experts_of_other_ranks_are_exact_zeros(make_context, whole):
    experts = filled(make_context(1, 3, placement="linear"), whole)
    ids = torch.tensor([[0, 7], [3, 1], [6, 2]])
    out = experts(torch.randn(3, HIDDEN), torch.rand(3, 2), ids)
    assert out[0].tolist() == out[2].tolist() == [0.0] * HIDDEN and out[1].abs().min() > 0


def test_one_rank_with_all_experts_looks_nothing_up(make_context):
    for placement in ("linear", "round_robin"):
        context = make_context(placement=placement)
        block = MoE(Routing(EXPERTS, 2), HIDDEN, WIDTH, "silu", context)
        assert type(block.experts) is Experts


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("e.7.gate_proj.weight", (WIDTH, HIDDEN + 1), "shape"),
        ("e.0.down_proj.weight", (HIDDEN, WIDTH + 1), "shape"),
        ("e.8.gate_proj.weight", (WIDTH, HIDDEN), "no place for e.8.gate_proj"),
    ],
)
def test_every_rank_notices_tensors_that_do_not_fit(make_context, whole, name, shape, message):
    for rank in range(3):
        experts = allocated(
            MoE(
                Routing(EXPERTS, 2),
                HIDDEN,
                WIDTH,
                "silu",
                make_context(rank, 3, placement="linear"),
            )
        ).experts
        filler = Filler(_Named(experts), RuleTable(experts_weights("e", "x", GATED_NAMES), ()))
        with pytest.raises(LoadError, match=message):
            filler.run([*whole.items(), (name, torch.zeros(shape))])


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize(("wide", "size"), [(False, 1), (True, 1), (False, 2)])
def test_a_block_can_be_captured_in_a_graph(make_context, wide, size):
    made = make_context(0, size, torch.bfloat16, placement="round_robin")
    context = replace(made, ops=resolve(PLATFORM.ops()))
    routing = Routing(EXPERTS, 3, "sigmoid", groups=4, top_groups=2, correction=True, wide=wide)
    block = allocated(MoE(routing, HIDDEN, WIDTH, "silu", context))
    for part in (block.router, block.experts):
        for destination in part.destinations():
            if destination.open is not ELSEWHERE:
                destination.fill(torch.randn(destination.shape))
        part.finish()
    first, second = torch.randn(2, 5, HIDDEN).bfloat16()
    with torch.inference_mode():
        graph = torch.classes.vllm.Graph([first], [*block.parameters(), *block.buffers()])
        assert graph.end(block(first)) == ""
        assert torch.equal(graph.replay([second]), block(second))
