"""Ranks whose experts have copies and move write what one rank writes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.loader.quantizing import quantized, rounded
from tests.models.conftest import Reference, generate
from tests.models.harness import config_for
from tests.models.ranks import InThread, on_ranks
from tests.models.test_parity import assert_same_text_and_logits
from tests.models.test_ranks import References, assert_ranks_agree
from tests.ops.overrides import isas
from tools.tiny_models import random_checkpoint
from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.device.agreement import AgreedTokens
from vllm.errors import ConfigError
from vllm.layers.dispatch import ExpertRanks
from vllm.layers.expert_placement import TURNS
from vllm.layers.moe import BalancedExperts, Experts
from vllm.loader import load_model, reload_weights
from vllm.models.interfaces import Model
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.cpu.device import CpuDevice
from vllm.worker.expert_balance import NoBalance, expert_balance

MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2_lite", "deepseek_v3")
CPU = torch.device("cpu")
WINDOW = ExpertBalanceConfig(enabled=True, window_size=2, step_interval=3)


def balanced(num_redundant: int = 3, **settings: Any) -> dict[str, Any]:
    return {
        "enable_expert_parallel": True,
        "enable_eplb": True,
        "num_redundant_experts": num_redundant,
        **settings,
    }


def layers_of(model: Model) -> list[BalancedExperts]:
    return [layer for layer in model.modules() if isinstance(layer, BalancedExperts)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("arch", MIXTURES)
def test_text_and_logits_are_those_of_transformers(arch, size, reference):
    settings = balanced(tensor_parallel_size=size)
    assert_ranks_agree(size, reference(arch), References(), **settings)


def moved_and_compared(expected: Reference, platform: Platform, size: int = 2) -> None:
    """Text and logits are those expected after every expert has been busy, one after the other."""
    config = config_for(expected.path, **balanced(tensor_parallel_size=size))

    def run(tp: InThread) -> None:
        model = load_model(config, platform, CPU, tp)
        layers = layers_of(model)
        balance = expert_balance(model, tp, CpuDevice(), WINDOW, depth=1)
        balance.rehearse()
        balance.begin()
        for busy in range(0, layers[0].no_expert, 2):
            busy_steps(balance, layers, busy)
            for layer in layers:
                assert len(layer.placement.spots(busy)) == size
        assert_same_text_and_logits(model, expected)

    on_ranks(size, run)


def busy_steps(balance: NoBalance, layers: list[BalancedExperts], busy: int) -> None:
    """Steps in which one expert is chosen often, until all layers have moved."""
    for _ in range(3 * (2 + len(layers))):
        for layer in layers:
            layer.counts += 1
            layer.counts[busy] += 1000
        balance.step_ends(num_launches=1)


@pytest.mark.parametrize("arch", MIXTURES)
def test_experts_that_have_moved_compute_what_they_did(arch, reference):
    moved_and_compared(reference(arch), References())


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize("arch", ["mixtral", "deepseek_v3"])
def test_packed_experts_move_too(arch, reference):
    moved_and_compared(reference(arch), CpuPlatform())


@pytest.mark.parametrize("kind", ["int", "float"])
def test_quantized_experts_move_with_their_scales(kind, tmp_path):
    path = random_checkpoint.make("deepseek_v3", tmp_path / "plain")
    expected = generate(rounded(path, tmp_path / "rounded", kind), (5, 17))
    made = quantized(path, tmp_path / "quantized", kind)
    given = Reference(made, expected.prompts, expected.tokens, expected.logits)
    moved_and_compared(given, References(), size=4)


def test_experts_of_several_copies_move(reference):
    """Of two copies with a rank each: tokens of both are counted, by both alike."""
    expected = reference("qwen3_moe")
    config = config_for(expected.path, **balanced(tensor_parallel_size=2))

    def run(ranks: InThread) -> list[Any]:
        experts = ExpertRanks(ranks, AgreedTokens())
        model = load_model(config, References(), CPU, experts=experts)
        layers = layers_of(model)
        balance = expert_balance(model, ranks, CpuDevice(), WINDOW, depth=2)
        balance.begin()
        for busy in range(3):
            busy_steps(balance, layers, busy)
        assert_same_text_and_logits(model, expected)
        return [layer.counts.tolist() for layer in layers]

    first, second = on_ranks(2, run)
    assert first == second
    for counts in first:
        assert sum(counts) > 0


def test_every_choice_is_counted_once_and_rows_take_turns(reference):
    config = config_for(reference("mixtral").path, **balanced(2, tensor_parallel_size=2))

    def run(tp: InThread) -> tuple[list[int], list[list[bool]]]:
        layer = layers_of(load_model(config, References(), CPU, tp))[0]
        assert layer.placement.held == [[0, 1, 2], [2, 3, 0]]
        x = torch.ones(TURNS + 1, layer.hidden)
        ids = torch.tensor([[0, 3]]).expand(len(x), 2)
        first, last = (
            layer(x, torch.tensor([weights]).expand(len(x), 2), ids)
            for weights in ((1.0, 0.0), (0.0, 1.0))
        )
        here = [(some != 0).any(1).tolist() for some in (first, last)]
        return layer.counts.tolist(), here

    ranks = on_ranks(2, run)
    for counts, _ in ranks:
        assert counts == [2 * (TURNS + 1), 0, 0, 2 * (TURNS + 1), 0]
    (_, (even, none)), (_, (odd, every)) = ranks
    assert even == [row % 2 == 0 for row in range(TURNS + 1)]
    assert odd == [not is_here for is_here in even]
    assert not any(none) and all(every)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_copies_hold_what_one_rank_holds(load_format, reference):
    def experts_of(tp: Any = None, **settings: Any) -> dict[str, Experts]:
        config = config_for(reference("qwen3_moe").path, load_format=load_format, **settings)
        model = load_model(config, References(), CPU, tp)
        return {path: m for path, m in model.named_modules() if isinstance(m, Experts)}

    whole = experts_of()
    shares = on_ranks(2, lambda tp: experts_of(tp, **balanced(tensor_parallel_size=2)))
    for path, every in whole.items():
        owned = [share[path].shard.owned for share in shares]
        assert len([*itertools.chain(*owned)]) == every.num_experts + 3
        for share, some in zip(shares, owned, strict=True):
            assert torch.equal(share[path].w13, every.w13[list(some)])
            assert torch.equal(share[path].w2, every.w2[list(some)])


@pytest.mark.parametrize("kind", ["", "float"])
def test_weights_are_loaded_again_to_where_experts_are(kind, tmp_path):
    paths = [random_checkpoint.make("deepseek_v3", tmp_path / str(i), seed=i) for i in (1, 2)]
    if kind:
        references = [rounded(path, tmp_path / f"r-{path.name}", kind) for path in paths]
        paths = [quantized(path, tmp_path / f"q-{path.name}", kind) for path in paths]
    made = generate(references[1] if kind else paths[1], (5, 17))
    expected = Reference(paths[1], made.prompts, made.tokens, made.logits)
    config = config_for(paths[0], **balanced(tensor_parallel_size=2))

    def run(tp: InThread) -> bool:
        model = load_model(config, References(), CPU, tp)
        balance = expert_balance(model, tp, CpuDevice(), WINDOW, depth=1)
        balance.begin()
        before = [layer.shard.owned for layer in layers_of(model)]
        busy_steps(balance, layers_of(model), busy=3)
        has_moved = [layer.shard.owned for layer in layers_of(model)] != before
        reload_weights(model, config, paths[1], tp.rank)
        assert_same_text_and_logits(model, expected)
        return has_moved

    assert any(on_ranks(2, run))


def test_more_copies_than_ranks_are_refused(reference):
    config = config_for(reference("mixtral").path, **balanced(5, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match=r"--num-redundant-experts 5: 2 ranks .* 4 experts"):
        on_ranks(2, lambda tp: load_model(config, References(), CPU, tp))


def test_only_the_steps_of_the_window_count_and_idle_ones_are_none(reference):
    """Of every three steps the last two count: window_size 2, step_interval 3."""
    config = config_for(reference("mixtral").path, **balanced(1, tensor_parallel_size=2))

    def run(tp: InThread) -> None:
        model = load_model(config, References(), CPU, tp)
        layers = layers_of(model)
        balance = expert_balance(model, tp, CpuDevice(), WINDOW, depth=2)
        balance.begin()
        assert layers[0].placement.held == [[0, 1, 2], [2, 3]]

        def step(busy: int, choices: int) -> None:
            for layer in layers:
                layer.counts[busy] += choices
            balance.step_ends(num_launches=0)
            balance.step_ends(num_launches=2)

        step(0, 1_000_000)
        step(3, 500)
        step(3, 500)
        step(1, 1_000_000)
        assert layers[0].placement.held == [[0, 1, 2], [2, 3]], "the counts are on their way"
        step(0, 1)
        assert [layers[0].placement.copies()[expert] for expert in (0, 3)] == [1, 2]
        step(2, 100)
        step(0, 1)
        step(0, 1)
        assert [layers[0].placement.copies()[expert] for expert in (0, 1, 2)] == [1, 1, 2]

    on_ranks(2, run)


def test_a_step_moves_as_much_as_is_allowed_and_every_state_computes_the_same(
    reference, monkeypatch
):
    monkeypatch.setattr("vllm.worker.expert_balance._STEP_BYTES", 1)
    expected = reference("qwen3_moe")
    config = config_for(expected.path, **balanced(tensor_parallel_size=4))
    often = ExpertBalanceConfig(enabled=True, window_size=30, step_interval=30)

    def run(tp: InThread) -> int:
        model = load_model(config, References(), CPU, tp)
        layers = layers_of(model)
        balance = expert_balance(model, tp, CpuDevice(), often, depth=1)
        balance.begin()
        for layer in layers:
            layer.counts[: layer.no_expert] = torch.arange(layer.no_expert) ** 4
        num_moves = 0
        for _ in range(45):
            before = [np.concatenate(layer.placement.held) for layer in layers]
            balance.step_ends(num_launches=1)
            after = [np.concatenate(layer.placement.held) for layer in layers]
            changed = sum((a != b).sum() for a, b in zip(before, after, strict=True))
            assert changed <= 2, "a copy, or an exchange"
            num_moves += changed > 0
            if num_moves == 3 and changed:
                assert_same_text_and_logits(model, expected)
        return num_moves

    first, *others = on_ranks(4, run)
    assert first > 5 and others == [first] * 3
