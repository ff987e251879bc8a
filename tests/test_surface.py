"""What programs written for vLLM import and construct."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S
from vllm.utils.text import did_you_mean

NAMES = {
    "vllm.engine.arg_utils": "AsyncEngineArgs EngineArgs",
    "vllm.engine.async_llm_engine": "AsyncLLMEngine",
    "vllm.engine.llm_engine": "LLMEngine",
    "vllm.engine.protocol": "EngineClient",
    "vllm.entrypoints.llm": "LLM",
    "vllm.entrypoints.openai.api_server": "build_app",
    "vllm.entrypoints.openai.cli_args": "make_arg_parser validate_parsed_serve_args",
    "vllm.inputs": "PromptType TextPrompt TokensPrompt",
    "vllm.inputs.data": "TextPrompt TokensPrompt",
    "vllm.logger": "init_logger",
    "vllm.logprobs": "Logprob PromptLogprobs SampleLogprobs",
    "vllm.lora.request": "LoRARequest",
    "vllm.outputs": "CompletionOutput EmbeddingOutput EmbeddingRequestOutput PoolingOutput "
    "PoolingRequestOutput RequestOutput",
    "vllm.platforms": "current_platform",
    "vllm.pooling_params": "PoolingParams",
    "vllm.sampling_params": "BeamSearchParams RequestOutputKind SamplingParams",
    "vllm.sequence": "Logprob RequestMetrics",
    "vllm.transformers_utils.tokenizer": "get_tokenizer",
    "vllm.utils": "Counter FlexibleArgumentParser random_uuid",
    "vllm.v1.engine.async_llm": "AsyncLLM",
    "vllm.v1.engine.llm_engine": "LLMEngine",
    "vllm.v1.metrics.reader": "Counter Gauge Histogram Metric",
    "vllm.version": "__version__",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_where_programs_import_them(module: str) -> None:
    found = dir(importlib.import_module(module))
    assert [name for name in NAMES[module].split() if name not in found] == []


def test_counters_and_ids_are_never_given_out_twice() -> None:
    from vllm.utils import Counter, random_uuid

    counter = Counter(3)
    assert [next(counter), next(counter)] == [3, 4]
    counter.reset()
    assert next(counter) == 0
    assert len({random_uuid() for _ in range(100)}) == 100


def test_outputs_can_be_built_as_vllms() -> None:
    from vllm import CompletionOutput, RequestOutput

    choice = CompletionOutput(
        index=0,
        text="a",
        token_ids=[1],
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="stop",
        stop_reason=None,
        lora_request=None,
    )
    output = RequestOutput(
        request_id="1",
        prompt="p",
        prompt_token_ids=[0],
        prompt_logprobs=None,
        outputs=[choice],
        finished=True,
        metrics=None,
        lora_request=None,
        encoder_prompt=None,
        encoder_prompt_token_ids=None,
        num_cached_tokens=3,
        kv_transfer_params=None,
    )
    assert output.outputs[0].finished()
    assert output.num_cached_tokens == 3


def test_a_hint_is_a_near_miss_or_none() -> None:
    flags = ["--max-model-len", "--mamba-block-size", "--chat-template", "--dtype"]
    assert did_you_mean("--max-model-length", flags) == " Did you mean --max-model-len?"
    assert did_you_mean("--num-blocks", flags) == ""
    assert did_you_mean("--compile", flags) == ""


def test_a_program_that_starts_an_engine_on_import_is_told_to_guard_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from vllm.engine.client import ProcessClient\nProcessClient(None, print)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=HANG_S
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
