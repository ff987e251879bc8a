"""Through the whole engine, every architecture writes what transformers writes."""

from __future__ import annotations

import pytest

from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arch", "eager"),
    [*((arch, False) for arch in random_checkpoint.ARCHITECTURES), ("qwen3", True)],
)
def test_batched_greedy_tokens_and_logprobs_are_those_of_transformers(arch, eager, reference):
    expected = reference(arch)
    llm = LLM(
        str(expected.path),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        num_gpu_blocks_override=100,
        enforce_eager=eager,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
    )
    params = SamplingParams(
        temperature=0, max_tokens=len(expected.tokens[0]), ignore_eos=True, logprobs=1
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in expected.prompts]
    results = llm.generate(prompts, params, use_tqdm=False)

    for result, tokens, logits in zip(results, expected.tokens, expected.logits, strict=True):
        output = result.outputs[0]
        assert list(output.token_ids) == tokens
        reference_logprobs = logits.log_softmax(-1)
        for step, (token, found) in enumerate(zip(tokens, output.logprobs, strict=True)):
            assert abs(found[token].logprob - reference_logprobs[step, token].item()) < 1e-3
