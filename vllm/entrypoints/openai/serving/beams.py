"""Beam search over HTTP: the prompts of a request in, the best sequences of each out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING

from vllm.beam_search import BeamFailed, beam_search_async, request_output, rounds
from vllm.engine.processor import truncated
from vllm.entrypoints.openai.errors import GenerationFailed
from vllm.entrypoints.openai.protocol.common import GenerationRequest
from vllm.errors import BadRequest
from vllm.inputs import ParsedPrompt, TokensPrompt
from vllm.outputs import BeamSearchOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from vllm.config.model import ModelConfig

# Outputs of one request to the engine.
Generate = Callable[[TokensPrompt, SamplingParams], AsyncGenerator[RequestOutput, None]]


async def search_beams(
    prompts: Sequence[TokensPrompt],
    params: SamplingParams,
    request: GenerationRequest,
    model: ModelConfig,
    generate: Generate,
    decode: Callable[[list[int]], str],
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

    for index, prompt in enumerate(prompts):
        token_ids = truncated(prompt["prompt_token_ids"], params, model.max_model_len)
        parsed = ParsedPrompt(prompt.get("prompt"), token_ids, prompt.get("cache_salt"))
        search = rounds(
            [parsed],
            _beam_params(request, params, model, len(token_ids)),
            model,
            _num_logprobs(params, model),
        )
        try:
            (found,) = await beam_search_async(search, generate)
        except BeamFailed as error:
            raise GenerationFailed(str(error)) from error
        except BadRequest as error:
            if error.param != "beam_width":
                raise
            width = "n" if request.best_of is None else "best_of"
            raise BadRequest(f"{width} is the width of the beam: {error}", width) from None
        best = BeamSearchOutput(found.sequences[: params.n])
        yield index, request_output("", parsed, best, decode, params.logprobs is not None)


def _beam_params(
    request: GenerationRequest, params: SamplingParams, model: ModelConfig, num_prompt_tokens: int
) -> BeamSearchParams:
    """`best_of`, or else `n`, is the width of the beam."""
    max_tokens = params.max_tokens
    if max_tokens is None:
        max_tokens = model.max_model_len - num_prompt_tokens
        if max_tokens < 1:
            raise BadRequest(
                f"the prompt has {num_prompt_tokens} tokens, which leaves no room: this model's "
                f"maximum context length is {model.max_model_len} tokens. Shorten it.",
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
    params.verify(model.vocab_size, model.max_logprobs, model.eos_token_ids)
    return model.vocab_size if params.logprobs == -1 else params.logprobs or 0
