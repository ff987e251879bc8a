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


@pytest.mark.parametrize(
    ("depth", "poison", "temperature"), [(1, torch.nan, 0.0), (2, -torch.inf, 1.0)]
)
def test_logits_that_allow_no_token_end_their_own_request_only(
    tiny_story: Path, depth: int, poison: float, temperature: float
) -> None:
    llm = LLM(str(tiny_story), dtype="float32", pipeline_depth=depth, max_num_seqs=4)

    def poisoned_at_third(output: list[int], logits: Tensor) -> Tensor:
        return torch.full_like(logits, poison) if len(output) == 2 else logits

    plain = SamplingParams(temperature=temperature, seed=1, max_tokens=6, ignore_eos=True)
    poisoned = plain.clone()
    poisoned.logits_processors = [poisoned_at_third]
    poisoned.logprobs = 2
    failed, other = (
        output.outputs[0]
        for output in llm.generate(["One day"] * 2, [poisoned, plain], use_tqdm=False)
    )
    assert failed.finish_reason == "error"
    assert "no token could be drawn" in str(failed.stop_reason)
    assert list(failed.token_ids) == list(other.token_ids)[:2]
    assert len(other.token_ids) == 6
    llm.llm_engine.call("check_integrity")
