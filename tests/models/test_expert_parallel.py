"""Ranks that have whole experts write what one rank writes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.loader.quantizing import quantized, rounded
from tests.models.conftest import Reference, generate
from tests.models.harness import config_for
from tests.models.ranks import on_ranks
from tests.models.test_ranks import References, assert_ranks_agree
from tests.ops.overrides import isas
from tools.tiny_models import random_checkpoint
from vllm.errors import ConfigError
from vllm.layers.moe import Experts
from vllm.loader import load_model
from vllm.platforms.cpu import CpuPlatform

PLACEMENTS = ("linear", "round_robin")
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3")
SIX: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6},
    "qwen3_moe": {"num_experts": 6},
    "deepseek_v3": {"n_routed_experts": 6, "n_group": 3, "topk_group": 2},
}
CPU = torch.device("cpu")


def whole_experts(placement: str = "linear") -> dict[str, Any]:
    return {"enable_expert_parallel": True, "expert_placement_strategy": placement}


def test_every_native_model_with_experts_is_here() -> None:
    fields = ("num_experts", "num_local_experts", "n_routed_experts")
    recipes = random_checkpoint._RECIPES
    assert {arch for arch in recipes if recipes[arch].fields.keys() & {*fields}} == {*MIXTURES}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("arch", MIXTURES)
def test_text_and_logits_are_those_of_transformers(arch, size, placement, reference):
    assert_ranks_agree(size, reference(arch), References(), **whole_experts(placement))


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """References of models with six experts."""
    root = tmp_path_factory.mktemp("six")
    return {
        arch: generate(random_checkpoint.make(arch, root / arch, **fields), (5, 17))
        for arch, fields in SIX.items()
    }


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("arch", SIX)
def test_six_experts_on_four_ranks(arch, placement, six):
    assert_ranks_agree(4, six[arch], References(), **whole_experts(placement))


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("arch", SIX)
def test_packed_experts_are_divided_too(arch, size, six):
    assert_ranks_agree(size, six[arch], CpuPlatform(), **whole_experts("round_robin"))


@pytest.mark.parametrize("kind", ["int", "float"])
def test_quantized_experts_are_divided_too(kind, tmp_path):
    path = random_checkpoint.make("deepseek_v3", tmp_path / "plain", **SIX["deepseek_v3"])
    expected = generate(rounded(path, tmp_path / "rounded", kind), (5, 17))
    made = quantized(path, tmp_path / "quantized", kind)
    given = Reference(made, expected.prompts, expected.tokens, expected.logits)
    assert_ranks_agree(4, given, References(), **whole_experts())


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ranks_hold_their_own_experts_alone(placement, load_format, six):
    """What they hold is what one rank holds, also of random weights."""

    def experts_of(tp: Any = None, **settings: Any) -> dict[str, Experts]:
        config = config_for(six["qwen3_moe"].path, load_format=load_format, **settings)
        model = load_model(config, References(), CPU, tp)
        return {path: m for path, m in model.named_modules() if isinstance(m, Experts)}

    whole = experts_of()
    assert whole
    shares = on_ranks(4, lambda tp: experts_of(tp, **whole_experts(placement)))
    for path, every in whole.items():
        owned = [share[path].shard.owned for share in shares]
        assert sorted(itertools.chain(*owned)) == list(range(6))
        assert [len(some) for some in owned] == [2, 2, 1, 1]
        for share, some in zip(shares, owned, strict=True):
            assert torch.equal(share[path].w13, every.w13[list(some)])
            assert torch.equal(share[path].w2, every.w2[list(some)])


def test_more_ranks_than_experts_are_refused_with_both_numbers(tmp_path):
    path = random_checkpoint.make(
        "mixtral", tmp_path / "mixtral", num_attention_heads=8, num_key_value_heads=8
    )
    config = config_for(path, **whole_experts())
    message = r"with 8 ranks .* have 4 experts.* Choose one of 1, 2, 4\.$"
    with pytest.raises(ConfigError, match=message):
        on_ranks(8, lambda tp: load_model(config, References(), CPU, tp))


def test_experts_of_transformers_are_refused_and_dense_models_are_not(reference):
    config = config_for(reference("mixtral").path, model_impl="transformers", **whole_experts())
    with pytest.raises(ConfigError, match=r"whole ones of .*Leave --enable-expert-parallel out"):
        on_ranks(2, lambda tp: load_model(config, References(), CPU, tp))
    for arch, implementation in (("llama", "auto"), ("olmo2", "transformers")):
        assert_ranks_agree(
            2, reference(arch), References(), model_impl=implementation, **whole_experts()
        )
