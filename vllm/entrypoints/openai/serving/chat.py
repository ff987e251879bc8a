"""/v1/chat/completions: a conversation in, the next message out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET

from vllm.entrypoints.openai.logprobs import chat_logprobs, prompt_logprobs, token_namer
from vllm.entrypoints.openai.protocol.chat import (
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatLogprobs,
    ChatMessage,
    ChatStreamChoice,
    DeltaMessage,
)
from vllm.entrypoints.openai.protocol.common import now_s
from vllm.entrypoints.openai.serving.context import ServingContext, text_prompt
from vllm.entrypoints.openai.streaming import events
from vllm.errors import BadRequest, NotAvailable
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams


class ServingChat:
    def __init__(self, context: ServingContext) -> None:
        self.context = context

    async def stream(
        self, request: ChatCompletionRequest, header_id: str | None
    ) -> AsyncGenerator[bytes, None]:
        answer, prompt, params = await self._prepare(request, header_id)
        return events(self.context.generate([prompt], params, answer.id, request), answer)

    async def create(
        self, request: ChatCompletionRequest, header_id: str | None
    ) -> ChatCompletionResponse:
        answer, prompt, params = await self._prepare(request, header_id)
        final: RequestOutput | None = None
        async for _, output in self.context.generate([prompt], params, answer.id, request):
            final = output
        assert final is not None, answer.id
        return answer.response(final)

    async def _prepare(
        self, request: ChatCompletionRequest, header_id: str | None
    ) -> tuple[ChatAnswer, TokensPrompt, SamplingParams]:
        model = self.context.admit(request)
        refuse_tools(request)
        if request.modalities is not None and request.modalities != ["text"]:
            raise NotAvailable("answers are text: modalities must be ['text']", "modalities")
        params = self._sampling_params(request)
        if request.reasoning_effort is not None:
            request.chat_template_kwargs = {
                "reasoning_effort": request.reasoning_effort,
                **(request.chat_template_kwargs or {}),
            }
        text, ids = await self.context.render(request)
        response_id = self.context.response_id("chatcmpl", request, header_id)
        answer = ChatAnswer(self.context, request, model, response_id)
        return answer, text_prompt(ids, text, request), params

    def _sampling_params(self, request: ChatCompletionRequest) -> SamplingParams:
        defaults = self.context.model.default_sampling_params
        if request.top_logprobs is not None and not request.logprobs:
            raise BadRequest("top_logprobs needs logprobs=true", "top_logprobs")
        if request.top_logprobs is not None and request.top_logprobs < -1:
            raise BadRequest(
                f"top_logprobs must be >= 0 (or -1: all), got {request.top_logprobs}",
                "top_logprobs",
            )
        max_tokens = request.max_completion_tokens
        if max_tokens is None:
            max_tokens = request.max_tokens
        if max_tokens is None:
            max_tokens = defaults.get("max_tokens")
        return request.sampling_params(
            defaults,
            max_tokens=max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
        )


def refuse_tools(request: ChatCompletionRequest) -> None:
    """Tools are shown to the template; calling them is what cannot be asked for."""
    choice = request.tool_choice
    if choice is None:
        choice = "auto" if request.tools else "none"
    if choice == "none" or (choice == "auto" and not request.tools):
        return
    raise NotAvailable(
        f"tool_choice {choice!r} is not available on this server, which parses no tool calls; "
        "set tool_choice to 'none' (tools still reach the chat template) or leave tools out",
        "tool_choice",
    )


class ChatAnswer:
    """Makes one HTTP request's message, or the chunks of it, from engine outputs."""

    def __init__(
        self, context: ServingContext, request: ChatCompletionRequest, model: str, response_id: str
    ) -> None:
        self.context = context
        self.request = request
        self.model = model
        self.id = response_id
        self.created = now_s()
        self.meter = context.usage_meter()
        self.name = token_namer(
            context.decode_token,
            bool(request.return_tokens_as_token_ids or context.options.return_tokens_as_token_ids),
        )
        last = request.messages[-1]
        self.role = context.options.response_role if request.add_generation_prompt else last.role
        self.echoed = last.content if request.echo and last.role == self.role else ""
        self.started: set[int] = set()

    def response(self, output: RequestOutput) -> ChatCompletionResponse:
        self.meter.push(0, output)
        response = ChatCompletionResponse(
            self.id,
            self.created,
            self.model,
            [self._choice(sequence) for sequence in output.outputs],
            self.meter.usage(),
        )
        if self.request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            response.prompt_logprobs = prompt_logprobs(self.name, output.prompt_logprobs)
        if self.request.return_token_ids:
            response.prompt_token_ids = list(output.prompt_token_ids or ())
        return response

    def push(self, prompt_idx: int, output: RequestOutput) -> Sequence[ChatCompletionChunk]:
        self.meter.push(prompt_idx, output)
        chunks: list[ChatCompletionChunk] = []
        for sequence in output.outputs:
            if sequence.index not in self.started:
                self.started.add(sequence.index)
                chunks.append(self._first_chunk(sequence, output))
            if sequence.text or sequence.token_ids or sequence.finish_reason is not None:
                chunks.append(self._chunk(sequence))
        if chunks and self.request.wants_continuous_usage:
            chunks[-1].usage = self.meter.usage()
        return chunks

    def finish(self) -> Sequence[ChatCompletionChunk]:
        if not (self.request.wants_usage or self.context.options.enable_force_include_usage):
            return ()
        return (ChatCompletionChunk(self.id, self.created, self.model, [], self.meter.usage()),)

    def _choice(self, sequence: CompletionOutput) -> ChatChoice:
        return ChatChoice(
            index=sequence.index,
            message=ChatMessage(self.role, f"{self.echoed}{sequence.text}"),
            logprobs=self._logprobs(sequence),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            token_ids=list(sequence.token_ids) if self.request.return_token_ids else UNSET,
        )

    def _first_chunk(
        self, sequence: CompletionOutput, output: RequestOutput
    ) -> ChatCompletionChunk:
        delta = DeltaMessage(self.role, f"{self.echoed}")
        chunk = self._wrapped(ChatStreamChoice(sequence.index, delta, None, None))
        if self.request.return_token_ids:
            chunk.prompt_token_ids = list(output.prompt_token_ids or ())
        return chunk

    def _chunk(self, sequence: CompletionOutput) -> ChatCompletionChunk:
        choice = ChatStreamChoice(
            index=sequence.index,
            delta=DeltaMessage(content=sequence.text),
            logprobs=self._logprobs(sequence),
            finish_reason=sequence.finish_reason,
        )
        if sequence.finish_reason is not None:
            choice.stop_reason = sequence.stop_reason
        if self.request.return_token_ids:
            choice.token_ids = list(sequence.token_ids)
        return self._wrapped(choice)

    def _wrapped(self, choice: ChatStreamChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(self.id, self.created, self.model, [choice])

    def _logprobs(self, sequence: CompletionOutput) -> ChatLogprobs | None:
        if not self.request.logprobs:
            return None
        count = self.request.top_logprobs or 0
        return chat_logprobs(
            self.name,
            self.context.model.vocab_size if count == -1 else count,
            sequence.token_ids,
            sequence.logprobs or (),
        )
