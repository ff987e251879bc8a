import pytest
import torch
import torch.nn.functional as F

from tests.layers.conftest import allocated
from vllm.layers.linear import GatedLinear, Linear
from vllm.layers.shapes import LinearShape, Part, Shard, ShardInfo, unfused
from vllm.layers.weights import Rule
from vllm.loader.filler import Filler
from vllm.loader.rules import RuleTable

RULES = tuple(Rule(f"{p}.{{w}}", "{w}", (p,)) for p in "qkv")


def fill(layer, tensors, rules=RULES):
    filler = Filler(allocated(layer), RuleTable(rules, ()))
    for name, tensor in tensors.items():
        filler.add(name, tensor)
    filler.finish()


def test_parts_of_a_fused_projection_are_stacked_in_order(make_context):
    parts = (Part("q", 8), Part("k", 4), Part("v", 4))
    layer = Linear(LinearShape(6, parts, Shard.COLUMN, bias=True), make_context())
    tensors = {f"{p.name}.weight": torch.randn(p.out, 6) for p in parts}
    tensors |= {f"{p.name}.bias": torch.randn(p.out) for p in parts}
    fill(layer, tensors)
    x = torch.randn(3, 6)
    separate = [F.linear(x, tensors[f"{p}.weight"], tensors[f"{p}.bias"]) for p in "qkv"]
    torch.testing.assert_close(layer(x), torch.cat(separate, -1))
    assert layer.widths == [8, 4, 4]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_shards_hold_every_output_once_and_few_kv_heads_repeatedly(make_context, size):
    parts = (
        Part("q", 8, 2),
        *(Part(name, 4, 2, repeats=True) for name in "kv"),
    )  # 4 query heads, 2 KV heads
    tensors = {f"{p.name}.weight": torch.randn(p.out, 6) for p in parts}
    x = torch.randn(3, 6)
    shards = []
    for rank in range(size):
        layer = Linear(LinearShape(6, parts, Shard.COLUMN), make_context(rank, size))
        fill(layer, tensors)
        shards.append(layer(x).split(layer.widths, dim=-1))
    q = torch.cat([shard[0] for shard in shards], -1)
    torch.testing.assert_close(q, x @ tensors["q.weight"].T)
    k = torch.cat([shard[1] for shard in shards[:: max(size // 2, 1)]], -1)
    torch.testing.assert_close(k, x @ tensors["k.weight"].T)


def test_row_shards_sum_to_the_whole_projection(make_context):
    weight, x = torch.randn(5, 8), torch.randn(3, 8)
    total = torch.zeros(3, 5)
    for rank in range(2):
        layer = Linear(unfused(8, 5, Shard.ROW), make_context(rank, 2))
        fill(layer, {"weight": weight}, (Rule("{w}", "{w}"),))
        total += layer(x[:, rank * 4 : rank * 4 + 4])
    torch.testing.assert_close(total, x @ weight.T)


def test_a_span_never_cuts_a_unit():
    assert [ShardInfo(r, 2).span(12, 3) for r in range(2)] == [(0, 6), (6, 6)]
    assert [ShardInfo(r, 4).span(6, 3, repeats=True) for r in range(4)] == [
        (0, 3),
        (0, 3),
        (3, 3),
        (3, 3),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_are_converted_from_whatever_they_are_stored_as(
    make_context, dtype, stored, monkeypatch
):
    torch.manual_seed(0)
    monkeypatch.setattr("vllm.platforms.cpu.weights._PIECE_BYTES", 100)
    layer = GatedLinear(6, 70, "silu", make_context(dtype=dtype), bias=True)
    # Transposed, as some checkpoints have them.
    tensors = {name: torch.randn(6, 70).to(stored).T for name in ("gate.weight", "up.weight")}
    tensors |= {name: torch.randn(70).to(stored) for name in ("gate.bias", "up.bias")}
    fill(layer, tensors, tuple(Rule(f"{p}.{{w}}", "{w}", (p,)) for p in ("gate", "up")))
    x = torch.randn(3, 6).to(dtype)
    gate, up = (
        F.linear(x.float(), *(tensors[f"{p}.{w}"].to(dtype).float() for w in ("weight", "bias")))
        for p in ("gate", "up")
    )
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 6e-2}
    torch.testing.assert_close(layer(x).float(), F.silu(gate) * up, **close)
