"""The engine with a model that has no KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models import cacheless
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.models import registry

pytestmark = pytest.mark.engine

NUM_TOKENS = 12
PROMPTS = [[(7 * n + 13 * i) % 2000 + 3 for i in range(n)] for n in (1, 3, 16, 17, 70, 33, 16)]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    return cacheless.make(tmp_path / "model")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enforce_eager": True, "pipeline_depth": 1},
        {"pipeline_depth": 3, "max_num_batched_tokens": 16, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 7, "enable_prefix_caching": True},
    ],
    ids=str,
)
def test_tokens_are_those_of_plain_torch(checkpoint: Path, options: dict[str, Any]) -> None:
    usual = {"dtype": "float32", "max_model_len": 96, "max_num_seqs": 3}
    llm = LLM(str(checkpoint), **usual, **options)
    asked = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in PROMPTS]
    expected = cacheless.greedy(checkpoint, PROMPTS, NUM_TOKENS)
    for _ in range(2):
        outputs = llm.generate(prompts, asked, use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
        assert [output.num_cached_tokens for output in outputs] == [0] * len(PROMPTS)
    llm.llm_engine.call("check_integrity")
    assert cacheless.facts_of(llm) == (0, 0, 0.0)
    assert llm.reset_prefix_cache()
