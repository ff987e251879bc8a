"""Copies of a model that share its experts, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tools.tiny_models import random_checkpoint

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("name", ["allgather_reducescatter", "deepep_high_throughput"])
def test_tokens_are_those_of_one_engine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_checkpoint.make("qwen3_moe", tmp_path / "model")
    monkeypatch.setenv("VLLM_ALL2ALL_BACKEND", name)
    found = []
    for options in ({}, {"data_parallel_size": 2, "enable_expert_parallel": True}):
        llm = engine(path, 1, **options)
        try:
            found.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert found[0] == found[1]
