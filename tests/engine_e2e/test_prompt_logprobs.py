from __future__ import annotations

from pathlib import Path

import pytest

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.engine


def test_prompt_logprobs_are_sent_whole_though_another_sequence_draws_first(
    tiny_story: Path,
) -> None:
    llm = LLM(
        str(tiny_story),
        max_num_seqs=4,
        long_prefill_token_threshold=8,
        max_num_partial_prefills=2,
        max_long_partial_prefills=2,
    )
    prompt = TokensPrompt(prompt_token_ids=list(range(300, 381)))
    llm.generate(prompt, SamplingParams(max_tokens=1), use_tqdm=False)  # fills the prefix cache
    engine = llm.llm_engine
    params = SamplingParams(
        n=2, seed=1, prompt_logprobs=0, max_tokens=30, output_kind=RequestOutputKind.DELTA
    )
    engine.add_request("a", prompt, params)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert outputs[0].prompt_logprobs is None, "the second sequence draws first"
    sent = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    assert [len(entries) for entries in sent] == [81]
