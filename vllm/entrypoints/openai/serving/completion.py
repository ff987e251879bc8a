"""/v1/completions: prompts in, continuations out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

from vllm.entrypoints.openai.logprobs import (
    CompletionLogprobsBuilder,
    TokenNamer,
    prompt_logprobs,
)
from vllm.entrypoints.openai.protocol.common import now_s
from vllm.entrypoints.openai.protocol.completion import (
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from vllm.entrypoints.openai.serving.context import ServingContext, text_prompt
from vllm.entrypoints.openai.serving.echo import EchoedPrompt, echoed_prompt
from vllm.entrypoints.openai.streaming import Chunk, EventTemplate, events
from vllm.entrypoints.openai.structured import structured_outputs_of
from vllm.errors import BadRequest
from vllm.inputs import EMPTY_PROMPT, TokensPrompt
from vllm.outputs import CompletionOutput, PromptLogprobs, RequestOutput
from vllm.sampling_params import SamplingParams


class ServingCompletion:
    def __init__(self, context: ServingContext) -> None:
        self.context = context

    async def stream(
        self, request: CompletionRequest, header_id: str | None
    ) -> AsyncGenerator[bytes, None]:
        answer, prompts, params = await self._prepare(request, header_id)
        return events(self.context.generate(prompts, params, answer.id, request), answer)

    async def create(self, request: CompletionRequest, header_id: str | None) -> CompletionResponse:
        answer, prompts, params = await self._prepare(request, header_id)
        choices: list[CompletionChoice] = []
        async for prompt_idx, output in self.context.generate(prompts, params, answer.id, request):
            choices.extend(answer.choices(prompt_idx, output))
        choices.sort(key=lambda choice: choice.index)
        response = answer.response(choices)
        response.usage = answer.meter.usage()
        return response

    async def _prepare(
        self, request: CompletionRequest, header_id: str | None
    ) -> tuple[CompletionAnswer, list[TokensPrompt], SamplingParams]:
        model = self.context.admit(request)
        params = self._sampling_params(request)
        prompts = await self._prompts(request)
        response_id = self.context.response_id("cmpl", request, header_id)
        answer = CompletionAnswer(self.context, request, model, response_id, params)
        return answer, prompts, params

    def _sampling_params(self, request: CompletionRequest) -> SamplingParams:
        defaults = self.context.model.default_sampling_params
        max_tokens = request.max_tokens
        if "max_tokens" not in request.model_fields_set:
            max_tokens = defaults.get("max_tokens", DEFAULT_MAX_TOKENS)
        # Scoring a prompt: its log-probabilities and no continuation. One token is the least that
        # the engine generates; the answer leaves it out.
        prompt_only = request.echo and max_tokens == 0
        logprobs = request.prompt_logprobs
        if request.echo and request.logprobs is not None and logprobs is None:
            logprobs = request.logprobs
        return request.sampling_params(
            defaults,
            max_tokens=1 if prompt_only else max_tokens,
            logprobs=request.logprobs,
            prompt_logprobs=logprobs,
            structured_outputs=structured_outputs_of(request),
        )

    async def _prompts(self, request: CompletionRequest) -> list[TokensPrompt]:
        prompt = request.prompt
        if prompt is None:
            raise BadRequest("prompt is required: text, token ids, or a list of either", "prompt")
        if prompt == []:
            raise BadRequest(EMPTY_PROMPT, "prompt")
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        items: Sequence[str | list[int]] = [prompt] if is_one else prompt  # type: ignore[assignment, list-item]
        return await asyncio.gather(*(self._prompt(item, request) for item in items))

    async def _prompt(self, item: str | list[int], request: CompletionRequest) -> TokensPrompt:
        if isinstance(item, str):
            self.context.check_length(item, request, "prompt")
            ids = await self.context.encode(item, request.add_special_tokens, "prompt")
        else:
            ids = item
        if not ids:  # of several prompts none is run then
            raise BadRequest(EMPTY_PROMPT, "prompt")
        return text_prompt(ids, item if isinstance(item, str) else None, request)


class CompletionAnswer:
    """Makes the choices of one HTTP request from engine outputs, whole or in pieces.

    A choice is one sequence of one prompt: index = prompt_idx * n + sequence.
    """

    def __init__(
        self,
        context: ServingContext,
        request: CompletionRequest,
        model: str,
        response_id: str,
        params: SamplingParams,
    ) -> None:
        self.context = context
        self.request = request
        self.params = params
        self.model = model
        self.id = response_id
        self.created = now_s()
        self.meter = context.usage_meter()
        self.name = TokenNamer(
            context.text_decoder,
            bool(request.return_tokens_as_token_ids or context.options.return_tokens_as_token_ids),
        )
        self.prompt_only = bool(request.echo) and request.max_tokens == 0
        self.num_sequences = request.n or 1
        count = request.logprobs or 0
        self.num_alternatives = context.model.vocab_size if count == -1 else count
        self.logprobs: dict[int, CompletionLogprobsBuilder] = {}
        self.started: set[int] = set()
        self.num_tokens: Counter[int] = Counter()  # by choice, where every chunk tells its usage
        # Of each prompt: a stream brings them once, and its sequences may start at different times.
        self.needs_prompt_logprobs = request.prompt_logprobs is not None or bool(
            request.echo and request.logprobs is not None
        )
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}
        self.echoed: dict[int, EchoedPrompt] = {}  # of each prompt, where its tokens are shown
        self.held: dict[int, RequestOutput] = {}
        self.has_plain_chunks = (
            request.logprobs is None
            and not self.needs_prompt_logprobs
            and not request.return_token_ids
            and not request.wants_continuous_usage
            and not self.prompt_only
        )
        self.templates: dict[int, EventTemplate] = {}  # by choice

    def response(self, choices: list[CompletionChoice]) -> CompletionResponse:
        return CompletionResponse(self.id, self.created, self.model, choices)

    def push(self, prompt_idx: int, output: RequestOutput) -> Sequence[Chunk]:
        if self.has_plain_chunks and len(output.outputs) == 1:
            index = prompt_idx * self.num_sequences + output.outputs[0].index
            if index in self.started and output.outputs[0].finish_reason is None:
                self.meter.push(prompt_idx, output)
                return (self._template(index).event(output.outputs[0].text),)
        whole = self._with_held(prompt_idx, output)
        if whole is None:
            return ()
        chunks = [self.response([choice]) for choice in self.choices(prompt_idx, whole)]
        if self.request.wants_continuous_usage:
            for chunk, sequence in zip(chunks, whole.outputs, strict=True):
                index = chunk.choices[0].index
                if not self.prompt_only:
                    self.num_tokens[index] += len(sequence.token_ids)
                chunk.usage = self.meter.usage_so_far(prompt_idx, self.num_tokens[index])
        return chunks

    def _template(self, index: int) -> EventTemplate:
        template = self.templates.get(index)
        if template is None:
            template = self.templates[index] = EventTemplate(
                lambda text: self.response([CompletionChoice(index, text, None, None)])
            )
        return template

    def _with_held(self, prompt_idx: int, output: RequestOutput) -> RequestOutput | None:
        """None while the log-probabilities that a first chunk starts with are not there yet."""
        if not self.needs_prompt_logprobs or prompt_idx in self.prompt_logprobs:
            return output
        earlier = self.held.pop(prompt_idx, None)
        if earlier is not None:
            earlier.extend(output)
            output = earlier
        if output.prompt_logprobs is None and not output.finished:
            self.held[prompt_idx] = output
            return None
        return output

    def finish(self) -> Sequence[CompletionResponse]:
        if not (self.request.wants_usage or self.context.options.enable_force_include_usage):
            return ()
        chunk = self.response([])
        chunk.usage = self.meter.usage()
        return (chunk,)

    def choices(self, prompt_idx: int, output: RequestOutput) -> list[CompletionChoice]:
        """One per sequence of `output`, which holds what is new since this prompt's last one."""
        self.meter.push(prompt_idx, output)
        if self.prompt_only:
            self.meter.num_output_tokens = 0
        if output.prompt_logprobs is not None:
            self.prompt_logprobs[prompt_idx] = output.prompt_logprobs
        return [self._choice(prompt_idx, sequence, output) for sequence in output.outputs]

    def _choice(
        self, prompt_idx: int, sequence: CompletionOutput, output: RequestOutput
    ) -> CompletionChoice:
        request = self.request
        index = prompt_idx * self.num_sequences + sequence.index
        echoed_logprobs = self.prompt_logprobs.get(prompt_idx, [])
        is_first = index not in self.started
        self.started.add(index)
        echo = is_first and bool(request.echo)
        choice = CompletionChoice(
            index=index,
            text="" if self.prompt_only else sequence.text,
            logprobs=self._logprobs(prompt_idx, sequence, output, echo),
            finish_reason="length" if self.prompt_only else sequence.finish_reason,
            stop_reason=None if self.prompt_only else sequence.stop_reason,
        )
        if echo:
            prompt = self._given_text(output)
            if prompt is None:
                prompt = self.context.decode(output.prompt_token_ids or [])
            choice.text = prompt + choice.text
        if is_first and request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(self.name, echoed_logprobs)
        if request.return_token_ids:
            choice.token_ids = list(sequence.token_ids)
            choice.prompt_token_ids = list(output.prompt_token_ids or ()) if is_first else None
        return choice

    def _given_text(self, output: RequestOutput) -> str | None:
        """The prompt as it was sent, if all of it was used and it was text."""
        return None if self.request.truncate_prompt_tokens is not None else output.prompt

    def _logprobs(
        self, prompt_idx: int, sequence: CompletionOutput, output: RequestOutput, echo: bool
    ) -> CompletionLogprobs | None:
        if self.request.logprobs is None:
            return None
        prompt_ids = output.prompt_token_ids or []
        decoder = self.context.text_decoder
        index = prompt_idx * self.num_sequences + sequence.index
        builder = self.logprobs.get(index)
        if builder is None:
            text = decoder.stream(self.params, prompt_ids)
            builder = CompletionLogprobsBuilder(self.name, self.num_alternatives, text)
            self.logprobs[index] = builder
        made = CompletionLogprobs([], [], [], [])
        if echo:
            if prompt_idx not in self.echoed:
                given = self._given_text(output)
                self.echoed[prompt_idx] = echoed_prompt(decoder, prompt_ids, given)
            known = self.prompt_logprobs.get(prompt_idx, [])
            # A request that was aborted early knows only some of them.
            padded = [*known, *[None] * (len(prompt_ids) - len(known))]
            made = builder.push_prompt(prompt_ids, padded, self.echoed[prompt_idx])
        if not self.prompt_only:
            made.extend(builder.push(sequence.token_ids, sequence.logprobs or ()))
        return made
