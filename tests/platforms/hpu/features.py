"""Everything a request can ask for, on the HPU of this process and on the CPU.

python -m tests.platforms.hpu.features [--enforce-eager]   prints JSON lines, as in_mode does
"""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from tests.conftest import STORY
from vllm import LLM, SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import StructuredOutputsParams

DRAW = {"temperature": 0.9, "seed": 11}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


def rolled(token_ids: list[int], logits: Any) -> Any:
    return logits.roll(1)


WANTS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.0},
    "draw": DRAW,
    "logprobs": {"temperature": 0.0, "logprobs": 3},
    "logprobs of none": {**DRAW, "logprobs": 0},
    "many logprobs": {**DRAW, "logprobs": 20, "top_k": 8},
    "prompt logprobs": {"temperature": 0.0, "prompt_logprobs": 2},
    "several": {**DRAW, "n": 3, "top_p": 0.9},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5},
    "presence": {**DRAW, "presence_penalty": 1.5},
    "bad words": {"temperature": 0.0, "bad_words": ["the", "a little"]},
    "allowed": {**DRAW, "allowed_token_ids": [262, 285, 291, 505, 601]},
    "bias": {**DRAW, "logit_bias": {262: 4.0, 285: -50.0}},
    "at least": {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": [262, 285]},
    "stop": {"temperature": 0.0, "stop": ["."]},
    "min p": {**DRAW, "min_p": 0.2},
    "processor": {"temperature": 0.0, "logits_processors": [rolled]},
    "schema": {**DRAW, "structured_outputs": StructuredOutputsParams(json=SCHEMA)},
    "regex": {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(regex="[a-c]{4}")},
    "one token": {"temperature": 0.0, "max_tokens": 1},
}
PROMPTS = (
    "O",
    "Once upon a time",
    "Tom and Mary went to the market. " * 4,
    "One day, a big dog saw",
)
ENGINES: dict[str, dict[str, Any]] = {
    "depth 2": {},
    "depth 3, short of blocks": {"pipeline_depth": 3, "num_gpu_blocks_override": 24},
    "processed logprobs": {"logprobs_mode": "processed_logprobs", "pipeline_depth": 1},
}


def params(want: str) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, **WANTS[want]})


def answers(
    device: str, options: Mapping[str, Any], functions: bool = True
) -> dict[str, list[RequestOutput]]:
    """By what was asked for. `functions`: Python functions too, which stay in this process."""
    llm = LLM(
        str(STORY),
        **{
            "device": device,
            "dtype": "float32",
            "block_size": 16,
            "max_model_len": 128,
            "max_num_seqs": 6,
            "max_num_batched_tokens": 64,
            "disable_log_stats": True,
            **options,
        },
    )
    try:
        # All together, so that every launch holds rows of many kinds.
        wants = [want for want in WANTS if functions or want != "processor"]
        asked = [(want, prompt) for prompt in PROMPTS for want in wants]
        outputs = llm.generate(
            [prompt for _, prompt in asked], [params(want) for want, _ in asked], use_tqdm=False
        )
        found: dict[str, list[RequestOutput]] = {}
        for (want, _), output in zip(asked, outputs, strict=True):
            found.setdefault(want, []).append(output)
        llm.llm_engine.call("check_integrity")
        return found
    finally:
        llm.llm_engine.shutdown()
        gc.collect()


def difference(given: RequestOutput, expected: RequestOutput) -> str:
    for ours, theirs in zip(given.outputs, expected.outputs, strict=True):
        if list(ours.token_ids) != list(theirs.token_ids) or ours.text != theirs.text:
            return f"{ours.text!r} instead of {theirs.text!r}"
        if (ours.finish_reason, ours.stop_reason) != (theirs.finish_reason, theirs.stop_reason):
            return f"ended by {ours.finish_reason} instead of {theirs.finish_reason}"
        if not close(ours.logprobs, theirs.logprobs):
            return f"{ours.logprobs} instead of {theirs.logprobs}"
    if not close(given.prompt_logprobs, expected.prompt_logprobs):
        return f"prompt: {given.prompt_logprobs} instead of {expected.prompt_logprobs}"
    return ""


def close(given: Any, expected: Any) -> bool:
    """Whether the same tokens have the same log-probabilities, within 1e-3."""
    if given is None or expected is None:
        return given is expected
    for ours, theirs in zip(given, expected, strict=True):
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
            continue
        given_scores, expected_scores = finite(ours), finite(theirs)
        if given_scores.keys() != expected_scores.keys():
            return False
        for token, score in expected_scores.items():
            if not math.isclose(given_scores[token], score, abs_tol=1e-3):
                return False
    return True


def finite(logprobs: Mapping[int, Logprob]) -> dict[int, float]:
    """Without tokens that cannot be drawn, of which any may be listed."""
    return {t: v.logprob for t, v in logprobs.items() if math.isfinite(v.logprob)}


def main(**options: Any) -> None:
    for name, engine in ENGINES.items():
        given = answers("hpu", {**engine, **options})
        expected = answers("cpu", engine)
        for want in WANTS:
            problems = [
                difference(ours, theirs)
                for ours, theirs in zip(given[want], expected[want], strict=True)
            ]
            line = {"name": f"{name}: {want}", "problem": "; ".join(filter(None, problems))}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(enforce_eager="--enforce-eager" in sys.argv)
