"""Beam search as a client of the engine: each round asks for one more token of every beam.

All beams of a prompt share their prefix, which the prefix cache computes once. The search itself
runs nothing: it yields rounds and is sent their outputs, so that callers who wait and callers who
await share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm.config.model import ModelConfig
from vllm.errors import BadRequest, NotAvailable
from vllm.inputs import ParsedPrompt, TokensPrompt
from vllm.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, SamplingParams


class BeamFailed(RuntimeError):
    """The engine could not go on with a beam, and says why."""


class Round(NamedTuple):
    """Requests to run to their end."""

    prompts: list[ParsedPrompt]
    params: SamplingParams


# Runs the requests of a round and returns their outputs in order.
Runner = Callable[[list[ParsedPrompt], SamplingParams], list[RequestOutput]]
Generate = Callable[[TokensPrompt, SamplingParams], AsyncGenerator[RequestOutput, None]]
Decode = Callable[[list[int]], str]
Rounds = Generator[Round, list[RequestOutput], list[BeamSearchOutput]]


@dataclass(slots=True)
class Search:
    """The beams of one prompt."""

    prompt: ParsedPrompt
    beams: list[BeamSearchSequence]
    ended: list[BeamSearchSequence] = field(default_factory=list)


def beam_search(
    prompts: Sequence[ParsedPrompt], params: BeamSearchParams, model: ModelConfig, run: Runner
) -> list[BeamSearchOutput]:
    """The `beam_width` best sequences of each prompt, searched together. Raises BadRequest.

    A score is the sum of log-probabilities over the length, prompt included, to the power of
    `length_penalty`.
    """
    search = rounds(prompts, params, model)
    try:
        turn = next(search)
        while True:
            turn = search.send(run(*turn))
    except StopIteration as end:
        found: list[BeamSearchOutput] = end.value
        return found


async def beam_search_async(search: Rounds, generate: Generate) -> list[BeamSearchOutput]:
    """As `beam_search`, awaiting each round of `search`. Cancelling it aborts what runs."""
    try:
        turn = next(search)
        while True:
            turn = search.send(await _run_all(generate, turn))
    except StopIteration as end:
        found: list[BeamSearchOutput] = end.value
        return found


async def _run_all(generate: Generate, turn: Round) -> list[RequestOutput]:
    async def last_output(prompt: ParsedPrompt) -> RequestOutput:
        assert prompt.token_ids is not None
        asked = TokensPrompt(prompt_token_ids=prompt.token_ids)
        if prompt.cache_salt is not None:
            asked["cache_salt"] = prompt.cache_salt
        async with aclosing(generate(asked, turn.params)) as stream:
            async for output in stream:
                if output.finished:
                    return output
        raise AssertionError("a request ended without a last output")

    tasks = [asyncio.ensure_future(last_output(prompt)) for prompt in turn.prompts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def rounds(
    prompts: Sequence[ParsedPrompt],
    params: BeamSearchParams,
    model: ModelConfig,
    num_logprobs: int = 0,
) -> Rounds:
    """The search: prompts must have token ids. Alternatives come at least `num_logprobs` at a time.

    Raises BadRequest at the first step.
    """
    _check(prompts, params, model)
    step_params = SamplingParams(
        max_tokens=1,
        logprobs=max(_num_candidates(params, model), num_logprobs),
        temperature=params.temperature if model.logprobs_mode.startswith("processed") else 0.0,
        ignore_eos=params.ignore_eos,
    )
    searches = [Search(p, [BeamSearchSequence(list(p.token_ids or ()), [])]) for p in prompts]
    for _ in range(params.max_tokens):
        beams = [(search, beam) for search in searches for beam in search.beams]
        if not beams:
            break
        outputs = yield Round(
            [ParsedPrompt(None, beam.tokens, search.prompt.cache_salt) for search, beam in beams],
            step_params,
        )
        for search in searches:
            search.beams = []
        for (search, beam), output in zip(beams, outputs, strict=True):
            _extend(search, beam, output, params, model)
        for search in searches:
            num_ended = len({tuple(beam.tokens) for beam in search.ended})
            is_done = params.early_stopping and num_ended >= params.beam_width
            best = [] if is_done else _ranked(search.beams, params, model)
            search.beams = best[: params.beam_width]
    return [_finish(search, params, model) for search in searches]


def _check(prompts: Sequence[ParsedPrompt], params: BeamSearchParams, model: ModelConfig) -> None:
    wanted = _num_candidates(params, model)
    limit = model.vocab_size if model.max_logprobs == -1 else model.max_logprobs
    if wanted > limit:
        raise BadRequest(
            f"beam_width={params.beam_width} needs {wanted} log-probabilities per token; this "
            f"engine gives at most {limit}. Use a narrower beam or raise --max-logprobs.",
            "beam_width",
        )
    if params.temperature not in (0.0, 1.0) and not model.logprobs_mode.startswith("processed"):
        raise NotAvailable(
            f"temperature={params.temperature:g} does not act on a beam search, which goes by the "
            "model's own log-probabilities. Leave it out, or start the engine with "
            "--logprobs-mode processed_logprobs.",
            "temperature",
        )
    longest = max((len(prompt.token_ids or ()) for prompt in prompts), default=0)
    if longest + params.max_tokens > model.max_model_len:
        raise BadRequest(
            f"a prompt of {longest} tokens and max_tokens={params.max_tokens} exceed "
            f"--max-model-len: this model's maximum context length is {model.max_model_len} "
            "tokens. Use fewer, or raise it.",
            "max_tokens",
        )


def _num_candidates(params: BeamSearchParams, model: ModelConfig) -> int:
    """Continuations of each beam: enough for beam_width to go on if as many end."""
    return min(2 * params.beam_width, model.vocab_size)


def _extend(
    search: Search,
    beam: BeamSearchSequence,
    output: RequestOutput,
    params: BeamSearchParams,
    model: ModelConfig,
) -> None:
    choice = output.outputs[0]
    if choice.finish_reason == "error":
        raise BeamFailed(str(choice.stop_reason))
    assert choice.logprobs is not None
    for token_id, logprob in choice.logprobs[0].items():
        assert logprob.rank is not None
        if logprob.rank > 2 * params.beam_width:
            continue  # drawn or asked for, but none of the most likely
        ends = token_id in model.eos_token_ids and not params.ignore_eos
        keep = not ends or params.include_stop_str_in_output
        sequence = BeamSearchSequence(
            tokens=[*beam.tokens, token_id] if keep else beam.tokens,
            logprobs=[*beam.logprobs, choice.logprobs[0]],
            cum_logprob=beam.cum_logprob + logprob.logprob,
            finish_reason="stop" if ends else None,
            stop_reason=token_id if ends else None,
        )
        (search.ended if ends else search.beams).append(sequence)


def _ranked(
    sequences: list[BeamSearchSequence], params: BeamSearchParams, model: ModelConfig
) -> list[BeamSearchSequence]:
    """Best first."""

    def score(sequence: BeamSearchSequence) -> float:
        ends = sequence.tokens[-1] in model.eos_token_ids
        length = max(1, len(sequence.tokens) - ends)
        return float(sequence.cum_logprob / length**params.length_penalty)

    return sorted(sequences, key=score, reverse=True)


def _finish(search: Search, params: BeamSearchParams, model: ModelConfig) -> BeamSearchOutput:
    for beam in search.beams:
        beam.finish_reason = "length"
    # Sequences that differ only in which of several stop tokens ended them read the same.
    distinct: dict[tuple[int, ...], BeamSearchSequence] = {}
    for beam in _ranked([*search.ended, *search.beams], params, model):
        distinct.setdefault(tuple(beam.tokens), beam)
    return BeamSearchOutput(list(distinct.values())[: params.beam_width])


def request_output(
    request_id: str,
    prompt: ParsedPrompt,
    found: BeamSearchOutput,
    decode: Decode | None,
    with_logprobs: bool = False,
) -> RequestOutput:
    """The beams as a finished request's sequences, without the prompt that each starts with."""
    prompt_ids = prompt.token_ids or []
    outputs = []
    for index, beam in enumerate(found.sequences):
        token_ids = beam.tokens[len(prompt_ids) :]
        outputs.append(
            CompletionOutput(
                index=index,
                text="" if decode is None else _text_after(decode, prompt_ids, beam.tokens),
                token_ids=token_ids,
                cumulative_logprob=beam.cum_logprob,
                # An end token that is not shown has log-probabilities all the same.
                logprobs=beam.logprobs[: len(token_ids)] if with_logprobs else None,
                finish_reason=beam.finish_reason,
            )
        )
    return RequestOutput(request_id, prompt.text, prompt_ids, outputs=outputs, finished=True)


def _text_after(decode: Decode, prompt_ids: list[int], token_ids: list[int]) -> str:
    """What the other tokens add to the prompt's text: decoded alone, the first word might lose its
    space."""
    before, whole = decode(prompt_ids), decode(token_ids)
    if whole.startswith(before):
        return whole[len(before) :]
    return decode(token_ids[len(prompt_ids) :])
