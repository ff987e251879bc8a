"""Ranks in processes of their own that have whole experts write what one rank writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_tensor_parallel import compare, engine, outputs_of
from tools.tiny_models import random_checkpoint

pytestmark = pytest.mark.engine

EXPERTS: dict[str, Any] = {"enable_expert_parallel": True}
DEALT = {**EXPERTS, "expert_placement_strategy": "round_robin"}
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3")


def products() -> Iterator[Any]:
    for arch, ranks, how in itertools.product(MIXTURES, (2, 4), (EXPERTS, DEALT)):
        name = f"{arch}, {ranks} ranks, {how.get('expert_placement_strategy', 'linear')}"
        yield pytest.param(arch, ranks, how, {}, id=name, marks=pytest.mark.product)


@pytest.mark.parametrize(
    ("arch", "ranks", "how", "shape"),
    [
        pytest.param("qwen3_moe", 4, DEALT, {"num_experts": 6}, id="six experts on four ranks"),
        pytest.param(
            "deepseek_v3",
            2,
            {**EXPERTS, "pipeline_parallel_size": 2},
            {},
            id="two stages",
            marks=pytest.mark.product,
        ),
        *products(),
    ],
)
def test_tokens_are_those_of_one_rank(
    arch: str, ranks: int, how: dict[str, Any], shape: dict[str, Any], tmp_path: Path
) -> None:
    compare(random_checkpoint.make(arch, tmp_path / arch, **shape), ranks, **how)


def test_weights_are_loaded_again_by_every_rank(tmp_path: Path) -> None:
    first = random_checkpoint.make("mixtral", tmp_path / "first", seed=1)
    second = random_checkpoint.make("mixtral", tmp_path / "second", seed=2)
    llm = engine(first, 2, **EXPERTS)
    try:
        before = outputs_of(llm)
        llm.collective_rpc("reload_weights", args=(str(second),))
        llm.reset_prefix_cache()
        given = outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()
    fresh = engine(second, 1)
    assert before != given == outputs_of(fresh)
