from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vllm import LLM, SamplingParams

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("depth", [1, 2])
def test_a_failing_logits_processor_ends_its_own_request_only(tiny_story: Path, depth: int) -> None:
    llm = LLM(str(tiny_story), dtype="float32", pipeline_depth=depth, max_num_seqs=4)

    def fails_at_third(output: list[int], logits: Tensor) -> Tensor:
        if len(output) == 2:
            raise KeyError("no such word")
        return logits

    def only_seven(output: list[int], logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[7] = 0.0
        return forced

    plain = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    outputs = llm.generate(
        ["One day"] * 3,
        [
            SamplingParams(temperature=0, max_tokens=6, logits_processors=[fails_at_third]),
            plain,
            SamplingParams(temperature=0, max_tokens=6, logits_processors=[only_seven]),
        ],
        use_tqdm=False,
    )
    failed, other, forced = (output.outputs[0] for output in outputs)
    assert failed.finish_reason == "error"
    assert "KeyError: 'no such word'" in str(failed.stop_reason)
    assert list(failed.token_ids) == list(other.token_ids)[:2]
    assert list(forced.token_ids) == [7] * 6
    again = llm.generate(["One day"], plain, use_tqdm=False)[0].outputs[0]
    assert list(again.token_ids) == list(other.token_ids)
    llm.llm_engine.call("check_integrity")
