"""Copies of a model that share its experts write what one copy writes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.conftest import Reference
from tests.models.harness import config_for
from tests.models.ranks import InThread, Meeting, on_ranks
from tests.models.test_expert_parallel import MIXTURES, PLACEMENTS, SIX, six, whole_experts
from tests.models.test_parity import assert_same_text_and_logits
from tests.models.test_ranks import References
from tests.ops.overrides import isas
from vllm.device.agreement import AgreedTokens
from vllm.errors import ConfigError
from vllm.layers.dispatch import ExpertRanks
from vllm.layers.moe import Experts
from vllm.loader import load_model
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform

__all__ = ["six"]  # a fixture

CPU = torch.device("cpu")
MOST_TOKENS = 64  # of any launch of these tests


def on_copies(copies: int, width: int, run: Any) -> list[object]:
    """run(tp, experts, copy) of `width` ranks of each of `copies`, which share experts."""
    meetings = [Meeting(width) for _ in range(copies)]

    def of_rank(everyone: InThread) -> object:
        copy, share = divmod(everyone.rank, width)
        tp = InThread(share, meetings[copy]) if width > 1 else None
        return run(tp, everyone, copy)

    return on_ranks(copies * width, of_rank)


def assert_copies_agree(
    copies: int, width: int, expected: list[Reference], platform: Platform, **settings: object
) -> None:
    """Copy i gives the text and the logits of expected[i], whatever the others compute."""
    config = config_for(expected[0].path, **settings)
    is_even = all(each.prompts == expected[0].prompts for each in expected)

    def run(tp: InThread | None, everyone: InThread, copy: int) -> None:
        tokens = AgreedTokens(0 if is_even else MOST_TOKENS)
        model = load_model(config, platform, CPU, tp, experts=ExpertRanks(everyone, tokens))
        assert_same_text_and_logits(model, expected[copy])

    on_copies(copies, width, run)


def some_of(whole: Reference, *rows: int) -> Reference:
    pick = [[each[row] for row in rows] for each in (whole.prompts, whole.tokens, whole.logits)]
    return replace(whole, prompts=pick[0], tokens=pick[1], logits=pick[2])


@pytest.mark.parametrize("name", ["", "allgather_reducescatter", "deepep_low_latency"])
@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_text_does_not_depend_on_the_way_that_tokens_travel(arch, name, six):
    settings = {"data_parallel_size": 4, "all2all_backend": name, **whole_experts()}
    expected = [some_of(six[arch], row % 2) for row in range(4)]
    assert_copies_agree(4, 1, expected, References(), **settings)


@pytest.mark.parametrize(("copies", "width"), [(2, 1), (2, 2)])
@pytest.mark.parametrize("arch", MIXTURES)
def test_text_and_logits_are_those_of_transformers(arch, copies, width, reference):
    expected = [reference(arch)] * copies
    assert_copies_agree(copies, width, expected, References(), **whole_experts())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("arch", SIX)
def test_copies_compute_different_requests(arch, placement, six):
    """Six experts on four ranks, whose launches have different numbers of tokens."""
    expected = [six[arch], some_of(six[arch], 1)]
    assert_copies_agree(2, 2, expected, References(), **whole_experts(placement))


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize("arch", SIX)
def test_packed_experts_are_shared_too(arch, six):
    expected = [some_of(six[arch], row % 2) for row in range(4)]
    assert_copies_agree(4, 1, expected, CpuPlatform(), **whole_experts("round_robin"))


def test_ranks_of_all_copies_hold_each_expert_once(six):
    config = config_for(six["qwen3_moe"].path, **whole_experts())

    def owned(tp: InThread | None, everyone: InThread, copy: int) -> list[tuple[int, ...]]:
        ranks = ExpertRanks(everyone, AgreedTokens())
        model = load_model(config, References(), CPU, tp, experts=ranks)
        return [m.shard.owned for m in model.modules() if isinstance(m, Experts)]

    for layer in zip(*on_copies(2, 2, owned), strict=True):
        assert sorted(itertools.chain(*layer)) == list(range(6))
        assert [len(some) for some in layer] == [2, 2, 1, 1]


def test_more_ranks_than_experts_are_refused_with_both_numbers(reference):
    config = config_for(reference("mixtral").path, **whole_experts())

    def run(tp: InThread | None, everyone: InThread, copy: int) -> None:
        load_model(config, References(), CPU, tp, experts=ExpertRanks(everyone, AgreedTokens()))

    with pytest.raises(ConfigError, match=r"with 8 ranks .* have 4 experts.* by its width\.$"):
        on_copies(4, 2, run)
