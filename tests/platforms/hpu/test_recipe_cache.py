"""Recipes that are kept over starts of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import STORY
from tests.hpu_emulator.conftest import Emulated

pytestmark = pytest.mark.engine

PROGRAM = """
from vllm import LLM, SamplingParams

llm = LLM(
    {path!r}, dtype="float32", max_num_seqs=1, max_model_len=32, max_num_batched_tokens=32,
    enforce_eager=True, recipe_cache={folder!r},
)
llm.generate(["Once"], SamplingParams(max_tokens=4), use_tqdm=False)
llm.llm_engine.shutdown()
"""


def test_the_second_start_compiles_nothing_that_the_first_one_did(
    emulated: Emulated, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "recipes"
    code = PROGRAM.format(path=str(STORY), folder=str(folder))
    variables = {
        "PT_HPU_LAZY_MODE": "1",
        "PT_HPU_METRICS_GC_DETAILS": "1",
        "VLLM_SKIP_WARMUP": "1",
        "VLLM_HPU_LOG_STEP_GRAPH_COMPILATION": "1",
    }
    logs = []
    for _ in range(2):
        done = emulated.start(code, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        logs.append(done.stdout + done.stderr)
    assert "graph compilations" in logs[0] and any(path.is_file() for path in folder.rglob("*"))
    assert "graph compilations" not in logs[1]


def test_a_setting_of_the_user_wins_over_the_flag(emulated: Emulated, tmp_path: Path) -> None:
    code = f"""
    from vllm import envs
    from vllm.platforms import keep_recipes

    keep_recipes({str(tmp_path)!r})
    print(envs.inherited("PT_HPU_RECIPE_CACHE_CONFIG"))
    """
    theirs = f"{tmp_path}/theirs,false,100"
    assert emulated.run(code, PT_HPU_RECIPE_CACHE_CONFIG=theirs).strip() == theirs
    assert emulated.run(code).strip() == f"{tmp_path},false,8192"
