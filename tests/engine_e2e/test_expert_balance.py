"""Experts that move while an engine serves: its tokens are those of one rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tools.tiny_models import random_checkpoint

pytestmark = pytest.mark.engine

BALANCED: dict[str, Any] = {
    "enable_expert_parallel": True,
    "enable_eplb": True,
    "num_redundant_experts": 3,
    "eplb_config": {"step_interval": 5, "window_size": 7},
}
MOVED = re.compile(r"Step \d+: \d+ experts have moved")


@pytest.mark.parametrize(
    ("arch", "ranks", "options"),
    [
        pytest.param("qwen3_moe", 2, {}, id="two ranks"),
        pytest.param(
            "mixtral", 1, {"data_parallel_size": 2, "pipeline_depth": 2}, id="two copies, depth 2"
        ),
        pytest.param(
            "qwen3_moe", 1, {"data_parallel_size": 2, "pipeline_depth": 1}, id="two copies, depth 1"
        ),
        pytest.param(
            "deepseek_v3",
            2,
            {"data_parallel_size": 2},
            id="two copies of two ranks",
            marks=pytest.mark.product,
        ),
        pytest.param(
            "deepseek_v3",
            2,
            {"pipeline_parallel_size": 2},
            id="two stages",
            marks=pytest.mark.product,
        ),
    ],
)
def test_tokens_are_those_of_one_rank(
    arch: str,
    ranks: int,
    options: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = random_checkpoint.make(arch, tmp_path / arch)
    outputs = []
    for number, how in ((1, {}), (ranks, {**BALANCED, **options})):
        llm = engine(path, number, **how)
        try:
            outputs.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert outputs[0] == outputs[1]
    assert len(MOVED.findall(capfd.readouterr().err)) > 5


def test_weights_are_loaded_again_to_where_experts_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = random_checkpoint.make("mixtral", tmp_path / "first", seed=1)
    second = random_checkpoint.make("mixtral", tmp_path / "second", seed=2)
    llm = engine(first, 2, **BALANCED)
    try:
        before = outputs_of(llm)
        assert MOVED.search(capfd.readouterr().err)
        llm.collective_rpc("reload_weights", args=(str(second),))
        llm.reset_prefix_cache()
        given = outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()
    fresh = engine(second, 1)
    assert before != given == outputs_of(fresh)


def test_how_even_it_is_is_logged_by_one_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = random_checkpoint.make("mixtral", tmp_path / "mixtral")
    how = {"log_balancedness": True, "log_balancedness_interval": 10}
    llm = engine(path, 2, enable_expert_parallel=True, enable_eplb=True, eplb_config=how)
    outputs_of(llm)
    llm.llm_engine.shutdown()
    line = r"Expert load after step (\d+): on average a rank has ([01]\.\d+) of what the busiest"
    found = re.findall(line, capfd.readouterr().err)
    steps = [int(step) for step, _ in found]
    assert len(steps) > 3 and steps == [*range(10, steps[-1] + 1, 10)]
    assert all(0.5 <= float(share) <= 1 for _, share in found)
