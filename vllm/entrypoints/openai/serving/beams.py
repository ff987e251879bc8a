"""Beam search over HTTP: the prompts of a request in, the best sequences of each out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from vllm.beam_search import beam_search_async, rounds
from vllm.engine.processor import truncated
from vllm.entrypoints.openai.errors import GenerationFailed
from vllm.entrypoints.openai.protocol.common import GenerationRequest
from vllm.entrypoints.openai.trace_context import trace_headers
from vllm.errors import BadRequest
from vllm.inputs import ParsedPrompt, TokensPrompt
from vllm.outputs import BeamSearchSequence, CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from vllm.config.model import ModelConfig
    from vllm.entrypoints.openai.serving.context import ServingContext


async def search_beams(
    context: ServingContext,
    prompts: Sequence[TokensPrompt],
    params: SamplingParams,
    request: GenerationRequest,
    next_id: Callable[[], str],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """One finished output per prompt, with the `n` best beams, best first.

    Raises BadRequest, EngineDeadError or GenerationFailed. Closing it aborts what runs.
    """
    if params.structured_outputs is not None:
        raise BadRequest(
            "a beam search cannot follow a grammar: leave out use_beam_search, or what asks for "
            "structured output",
            "use_beam_search",
        )

    async def run_one(prompt: ParsedPrompt, step: SamplingParams) -> RequestOutput:
        assert prompt.token_ids is not None
        asked = TokensPrompt(prompt_token_ids=prompt.token_ids)
        if prompt.cache_salt is not None:
            asked["cache_salt"] = prompt.cache_salt
        stream = context.engine.generate(
            asked,
            step,
            next_id(),
            trace_headers=trace_headers(),
            priority=request.priority or 0,
        )
        async with aclosing(stream):
            async for output in stream:
                if output.finished:
                    if output.outputs[0].finish_reason == "error":
                        raise GenerationFailed(str(output.outputs[0].stop_reason))
                    return output
        raise AssertionError("a request ended without a last output")

    async def run(beams: list[ParsedPrompt], step: SamplingParams) -> list[RequestOutput]:
        tasks = [asyncio.ensure_future(run_one(beam, step)) for beam in beams]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    for index, prompt in enumerate(prompts):
        token_ids = truncated(prompt["prompt_token_ids"], params, context.model.max_model_len)
        parsed = ParsedPrompt(prompt.get("prompt"), token_ids, prompt.get("cache_salt"))
        search = rounds(
            [parsed],
            _beam_params(request, params, context.model, len(token_ids)),
            context.model,
            _num_logprobs(params, context.model),
        )
        try:
            (found,) = await beam_search_async(search, run)
        except BadRequest as error:
            if error.param != "beam_width":
                raise
            width = "n" if request.best_of is None else "best_of"
            raise BadRequest(f"{width} is the width of the beam: {error}", width) from None
        yield (
            index,
            RequestOutput(
                request_id="",
                prompt=parsed.text,
                prompt_token_ids=token_ids,
                outputs=[
                    _completion(context, i, sequence, len(token_ids), params)
                    for i, sequence in enumerate(found.sequences[: params.n])
                ],
                finished=True,
            ),
        )


def _beam_params(
    request: GenerationRequest, params: SamplingParams, model: ModelConfig, num_prompt_tokens: int
) -> BeamSearchParams:
    """`best_of`, or else `n`, is the width of the beam."""
    max_tokens = params.max_tokens
    if max_tokens is None:
        max_tokens = model.max_model_len - num_prompt_tokens
        if max_tokens < 1:
            raise BadRequest(
                f"the prompt has {num_prompt_tokens} tokens, which leaves no room in the "
                f"{model.max_model_len} of --max-model-len. Shorten it.",
                "prompt",
            )
    temperature, penalty = request.temperature, request.length_penalty
    return BeamSearchParams(
        beam_width=params.num_sequences,
        max_tokens=max_tokens,
        ignore_eos=params.ignore_eos,
        temperature=0.0 if temperature is None else temperature,
        length_penalty=1.0 if penalty is None else penalty,
        include_stop_str_in_output=params.include_stop_str_in_output,
        early_stopping=bool(request.early_stopping),
    )


def _num_logprobs(params: SamplingParams, model: ModelConfig) -> int:
    params.verify(model.vocab_size, model.max_logprobs)
    return model.vocab_size if params.logprobs == -1 else params.logprobs or 0


def _completion(
    context: ServingContext,
    index: int,
    sequence: BeamSearchSequence,
    num_prompt_tokens: int,
    params: SamplingParams,
) -> CompletionOutput:
    token_ids = sequence.tokens[num_prompt_tokens:]
    wanted = params.logprobs is not None
    return CompletionOutput(
        index=index,
        text=_text(context, sequence.tokens, num_prompt_tokens, params.skip_special_tokens),
        token_ids=token_ids,
        cumulative_logprob=sequence.cum_logprob,
        # A stop token that the text does not show has log-probabilities all the same.
        logprobs=sequence.logprobs[: len(token_ids)] if wanted else None,
        finish_reason=sequence.finish_reason,
        # The end of a text is no stop token that the client asked for.
        stop_reason=None,
    )


def _text(context: ServingContext, token_ids: list[int], start: int, skip_special: bool) -> str:
    """What the tokens from `start` add to the text of those before: decoded alone, the first word
    might lose its space."""
    whole = context.decode(token_ids, skip_special)
    before = context.decode(token_ids[:start], skip_special)
    if whole.startswith(before):
        return whole[len(before) :]
    return context.decode(token_ids[start:], skip_special)
