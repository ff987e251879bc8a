"""Against a model of five tokens, all of whose continuations can be enumerated."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from vllm.beam_search import BeamFailed, beam_search, beam_search_async, rounds
from vllm.errors import BadRequest
from vllm.inputs import ParsedPrompt, TokensPrompt
from vllm.outputs import BeamSearchOutput, CompletionOutput, Logprob, RequestOutput
from vllm.sampling_params import BeamSearchParams, SamplingParams

VOCAB = 5
END, OTHER_END = 4, 3
PROMPT = ParsedPrompt(None, [0])


def model(**values: Any) -> Any:
    facts = {
        "vocab_size": VOCAB,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "max_model_len": 100,
        "eos_token_ids": frozenset({END}),
    }
    return SimpleNamespace(**{**facts, **values})


def logprobs_after(tokens: list[int]) -> list[float]:
    """Some distribution that depends on the last two tokens."""
    last, before = tokens[-1], tokens[-2] if len(tokens) > 1 else 1
    weights = [1 + (7 * last + 3 * before + 5 * token * token) % 11 for token in range(VOCAB)]
    return [math.log(weight / sum(weights)) for weight in weights]


def run(prompts: list[ParsedPrompt], params: SamplingParams) -> list[RequestOutput]:
    outputs = []
    for prompt in prompts:
        assert prompt.token_ids is not None and params.logprobs is not None
        values = logprobs_after(prompt.token_ids)
        order = sorted(range(VOCAB), key=lambda token: -values[token])
        best = {
            token: Logprob(values[token], rank)
            for rank, token in enumerate(order[: params.logprobs], 1)
        }
        choice = CompletionOutput(0, "", [order[0]], None, [best], "length")
        outputs.append(RequestOutput("", None, prompt.token_ids, outputs=[choice]))
    return outputs


def best_of_all(length: int, penalty: float) -> list[int]:
    """By trying every sequence of up to `length` tokens; the end token counts but is not shown."""
    scores: dict[tuple[int, ...], float] = {}
    for size in range(1, length + 1):
        for tokens in itertools.product(range(VOCAB), repeat=size):
            if END in tokens[:-1] or (size < length and tokens[-1] != END):
                continue
            known, total = [0], 0.0
            for token in tokens:
                total += logprobs_after(known)[token]
                known.append(token)
            shown = known[:-1] if tokens[-1] == END else known
            scores[tuple(shown)] = total / len(shown) ** penalty
    return list(max(scores, key=lambda tokens: scores[tokens]))


def found_by(params: BeamSearchParams, **facts: Any) -> list[list[int]]:
    (output,) = beam_search([PROMPT], params, model(**facts), run)
    return [sequence.tokens for sequence in output.sequences]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_sequence(penalty: float) -> None:
    params = BeamSearchParams(beam_width=64, max_tokens=4, length_penalty=penalty)
    assert found_by(params)[0] == best_of_all(4, penalty)


def test_a_wider_beam_finds_no_worse() -> None:
    totals = []
    for width in (1, 2, 8):
        params = BeamSearchParams(beam_width=width, max_tokens=6, ignore_eos=True)
        (output,) = beam_search([PROMPT], params, model(), run)
        assert len(output.sequences) == width
        totals.append(output.sequences[0].cum_logprob)
    assert totals == sorted(totals)


def test_awaiting_the_rounds_gives_the_same() -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5)

    async def generate(
        prompt: TokensPrompt, step: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        await asyncio.sleep(0)
        (output,) = run([ParsedPrompt(None, prompt["prompt_token_ids"])], step)
        output.finished = True
        yield output

    async def search() -> list[BeamSearchOutput]:
        return await beam_search_async(rounds([PROMPT, PROMPT], params, model()), generate)

    assert asyncio.run(search()) == beam_search([PROMPT, PROMPT], params, model(), run)


def test_early_stopping_ends_with_as_many_ended_sequences_as_the_beam_is_wide() -> None:
    early = BeamSearchParams(beam_width=2, max_tokens=30, early_stopping=True, length_penalty=0.0)
    (output,) = beam_search([PROMPT], early, model(), run)
    assert [sequence.finish_reason for sequence in output.sequences] == ["stop", "stop"]
    assert max(len(sequence.tokens) for sequence in output.sequences) < 30


def test_sequences_that_read_the_same_are_found_once() -> None:
    params = BeamSearchParams(beam_width=4, max_tokens=3, length_penalty=0.0)
    found = found_by(params, eos_token_ids=frozenset({END, OTHER_END}))
    assert len({tuple(tokens) for tokens in found}) == len(found) == 4


def test_the_end_token_is_shown_on_request() -> None:
    params = BeamSearchParams(
        beam_width=2, max_tokens=30, include_stop_str_in_output=True, length_penalty=0.0
    )
    (output,) = beam_search([PROMPT], params, model(), run)
    ended = [s for s in output.sequences if s.finish_reason == "stop"]
    assert ended and all(sequence.tokens[-1] == END for sequence in ended)


@pytest.mark.parametrize("penalty", [math.inf, 1e300, -21.0])
def test_a_length_penalty_beyond_what_floats_hold_is_refused(penalty: float) -> None:
    with pytest.raises(BadRequest, match="length_penalty must be"):
        BeamSearchParams(beam_width=2, max_tokens=2, length_penalty=penalty)


def test_a_beam_whose_request_fails_ends_the_search() -> None:
    def fail(prompts: list[ParsedPrompt], step: SamplingParams) -> list[RequestOutput]:
        choice = CompletionOutput(0, "", [], finish_reason="error", stop_reason="logits are NaN")
        return [RequestOutput("", None, [0], outputs=[choice]) for _ in prompts]

    with pytest.raises(BeamFailed, match="logits are NaN"):
        beam_search([PROMPT], BeamSearchParams(beam_width=1, max_tokens=2), model(), fail)
