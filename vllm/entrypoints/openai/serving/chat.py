"""/v1/chat/completions: a conversation in, the next message out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from vllm.entrypoints.chat_utils import text_of
from vllm.entrypoints.openai.logprobs import TokenNamer, chat_logprobs, prompt_logprobs
from vllm.entrypoints.openai.protocol.chat import (
    CalledFunction,
    CalledFunctionChunk,
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatLogprobs,
    ChatMessage,
    ChatStreamChoice,
    DeltaMessage,
    ToolCall,
    ToolCallChunk,
)
from vllm.entrypoints.openai.protocol.common import now_s
from vllm.entrypoints.openai.serving.chat_parsers import ChatParsers
from vllm.entrypoints.openai.serving.chat_run import ChatRun, MessageUpdate
from vllm.entrypoints.openai.serving.context import ServingContext, text_prompt
from vllm.entrypoints.openai.serving.tool_choice import FREE, ToolChoice, tool_choice_of
from vllm.entrypoints.openai.streaming import Chunk, EventTemplate, events
from vllm.entrypoints.openai.structured import structured_outputs_of
from vllm.errors import BadRequest, NotAvailable
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parsers.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallDelta
from vllm.parsers.message import MessageText
from vllm.sampling_params import SamplingParams
from vllm.structured_params import StructuredOutputsParams


class ServingChat:
    """Raises ConfigError for parsers that do not exist."""

    def __init__(self, context: ServingContext) -> None:
        self.context = context
        added = context.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        self.parsers = ChatParsers(context.options, special)

    async def stream(
        self, request: ChatCompletionRequest, header_id: str | None
    ) -> AsyncGenerator[bytes, None]:
        run = await self.start(request, header_id)
        return events(run.outputs, ChatAnswer(self.context, request, run))

    async def create(
        self, request: ChatCompletionRequest, header_id: str | None
    ) -> ChatCompletionResponse:
        run = await self.start(request, header_id)
        updates: list[MessageUpdate] = []
        async for some in run.updates():
            updates = some  # without a stream there is one output, at the end
        return ChatAnswer(self.context, request, run).response(updates)

    async def start(self, request: ChatCompletionRequest, header_id: str | None) -> ChatRun:
        """Check and render a request; generation starts with the first output asked for.

        Raises BadRequest.
        """
        model = self.context.admit(request)
        if request.modalities is not None and request.modalities != ["text"]:
            raise NotAvailable("answers are text: modalities must be ['text']", "modalities")
        choice = tool_choice_of(request)
        self.parsers.check(choice)
        params = self._sampling_params(request, choice)
        calls = choice.under(params.structured_outputs)
        if self.parsers.shows_special_tokens(calls):
            params.skip_special_tokens = False
        rendered = self._rendered(request, choice)
        text, ids = await self.context.render(rendered)
        begun = await self._begun(rendered, text)
        if (form := params.structured_outputs) is not None:
            reasoning = self.parsers.before_form(text, begun)
            params.structured_outputs = msgspec.structs.replace(form, reasoning=reasoning)
        response_id = self.context.response_id("chatcmpl", request, header_id)
        prompt = text_prompt(ids, text, request)
        return ChatRun(
            response_id,
            model,
            self.context.usage_meter(),
            self.context.generate([prompt], params, response_id, request),
            self.parsers.maker(calls, begun, request.include_reasoning),
        )

    def _rendered(
        self, request: ChatCompletionRequest, choice: ToolChoice
    ) -> ChatCompletionRequest:
        """The request as the template shall see it."""
        changes: dict[str, Any] = {}
        if choice.choice == "none" and self.context.options.exclude_tools_when_tool_choice_none:
            changes["tools"] = None
        kwargs = dict(self.context.options.default_chat_template_kwargs)
        if request.reasoning_effort is not None:
            kwargs["reasoning_effort"] = request.reasoning_effort
        if kwargs:
            changes["chat_template_kwargs"] = {**kwargs, **(request.chat_template_kwargs or {})}
        return request.model_copy(update=changes) if changes else request

    async def _begun(self, request: ChatCompletionRequest, prompt: str) -> str:
        """What the prompt has of the message to be made, as far as that may hold reasoning.

        Markers in other messages say nothing, so the conversation is rendered without it.
        """
        if not self.parsers.has_markers(prompt):
            return ""
        if self.parsers.ends_with_marker(prompt):
            return prompt
        is_continued = request.continue_final_message or (
            not request.add_generation_prompt and request.messages[-1].role == "assistant"
        )
        messages = request.messages[:-1] if is_continued else request.messages
        if not messages:
            return prompt
        changes = {
            "messages": messages,
            "add_generation_prompt": False,
            "continue_final_message": False,
        }
        try:
            before = await self.context.render_text(request.model_copy(update=changes))
        except BadRequest:  # a template that wants a conversation to end otherwise
            return prompt
        return self.parsers.begun(
            prompt, before if isinstance(before, str) else self.context.decode(before)
        )

    def _sampling_params(
        self, request: ChatCompletionRequest, choice: ToolChoice
    ) -> SamplingParams:
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
        return request.sampling_params(
            defaults,
            max_tokens=max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
            structured_outputs=_form(request, choice),
        )


def _form(request: ChatCompletionRequest, choice: ToolChoice) -> StructuredOutputsParams | None:
    asked = structured_outputs_of(request)
    if not choice.is_forced:
        return asked
    if asked is not None:
        raise BadRequest(
            "a tool_choice that makes the model call, and a form of the output, exclude each "
            "other: leave out tool_choice, or what asks for a form",
            "tool_choice",
        )
    return choice.form()


class ChatAnswer:
    """Makes one HTTP request's message, or the chunks of it."""

    def __init__(
        self, context: ServingContext, request: ChatCompletionRequest, run: ChatRun
    ) -> None:
        self.context = context
        self.request = request
        self.run = run
        self.created = now_s()
        self.name = TokenNamer(
            context.text_decoder,
            bool(request.return_tokens_as_token_ids or context.options.return_tokens_as_token_ids),
        )
        last = request.messages[-1]
        self.role = context.options.response_role if request.add_generation_prompt else last.role
        self.echoed = text_of(last.content) if request.echo and last.role == self.role else ""
        self.is_forced = request.tool_choice not in (None, *FREE)
        self.started: set[int] = set()
        self.num_tokens: Counter[int] = Counter()  # by choice, where every chunk tells its usage
        self.has_plain_chunks = not (
            request.logprobs or request.return_token_ids or request.wants_continuous_usage
        )
        self.templates: dict[int, EventTemplate] = {}  # by choice

    def response(self, updates: Sequence[MessageUpdate]) -> ChatCompletionResponse:
        response = ChatCompletionResponse(
            self.run.id,
            self.created,
            self.run.model,
            [self._choice(update) for update in updates],
            self.run.meter.usage(),
        )
        if self.request.prompt_logprobs is not None and self.run.prompt_logprobs is not None:
            response.prompt_logprobs = prompt_logprobs(self.name, self.run.prompt_logprobs)
        if self.request.return_token_ids:
            response.prompt_token_ids = self.run.prompt_token_ids
        return response

    def push(self, prompt_idx: int, output: RequestOutput) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        for update in self.run.push(prompt_idx, output):
            if update.index not in self.started:
                self.started.add(update.index)
                chunks.append(self._first_chunk(update.index))
            if not self.has_plain_chunks:
                self.num_tokens[update.index] += len(update.sequence.token_ids)
            plain = _plain_text(update) if self.has_plain_chunks else None
            if plain is not None:
                chunks.append(self._template(update).event(plain))
            elif self._says_something(update):
                chunks.append(self._chunk(update))
        return chunks

    def _template(self, update: MessageUpdate) -> EventTemplate:
        template = self.templates.get(update.index)
        if template is None:
            template = self.templates[update.index] = EventTemplate(
                lambda text: self._chunk(update._replace(deltas=[ContentDelta(text)]))
            )
        return template

    def finish(self) -> Sequence[ChatCompletionChunk]:
        if not (self.request.wants_usage or self.context.options.enable_force_include_usage):
            return ()
        chunk = ChatCompletionChunk(self.run.id, self.created, self.run.model, [])
        chunk.usage = self.run.meter.usage()
        return (chunk,)

    def _says_something(self, update: MessageUpdate) -> bool:
        """Text may be held back; what belongs to its tokens may not."""
        wants_tokens = self.request.logprobs or self.request.return_token_ids
        return (
            bool(update.deltas)
            or update.finish_reason is not None
            or bool(wants_tokens and update.sequence.token_ids)
        )

    def _choice(self, update: MessageUpdate) -> ChatChoice:
        text = MessageText()
        text.add(update.deltas)
        message = ChatMessage(self.role, f"{self.echoed}{text.content}")
        message.tool_calls = [
            ToolCall(call_id, CalledFunction(call.name or "", call.arguments))
            for call_id, call in text.calls
        ]
        if message.tool_calls and not message.content and not self.is_forced:
            message.content = None
        if text.reasoning:
            message.reasoning_content = message.reasoning = text.reasoning
        return ChatChoice(
            index=update.index,
            message=message,
            logprobs=self._logprobs(update.sequence),
            finish_reason=update.finish_reason,
            stop_reason=update.sequence.stop_reason,
            token_ids=list(update.sequence.token_ids) if self.request.return_token_ids else None,
        )

    def _first_chunk(self, index: int) -> ChatCompletionChunk:
        delta = DeltaMessage(self.role, self.echoed)
        chunk = self._wrapped(ChatStreamChoice(index, delta, None, None))
        if self.request.return_token_ids:
            chunk.prompt_token_ids = self.run.prompt_token_ids
        return chunk

    def _chunk(self, update: MessageUpdate) -> ChatCompletionChunk:
        sequence = update.sequence
        choice = ChatStreamChoice(
            index=update.index,
            delta=_delta_message(update.deltas),
            logprobs=self._logprobs(sequence),
            finish_reason=update.finish_reason,
        )
        if update.finish_reason is not None:
            choice.stop_reason = sequence.stop_reason
        if self.request.return_token_ids:
            choice.token_ids = list(sequence.token_ids)
        return self._wrapped(choice)

    def _wrapped(self, choice: ChatStreamChoice) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(self.run.id, self.created, self.run.model, [choice])
        if self.request.wants_continuous_usage:
            chunk.usage = self.run.meter.usage_so_far(0, self.num_tokens[choice.index])
        return chunk

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


def _plain_text(update: MessageUpdate) -> str | None:
    """The text of an update that is a piece of content and nothing else."""
    if update.finish_reason is not None or len(update.deltas) != 1:
        return None
    delta = update.deltas[0]
    return delta.text if isinstance(delta, ContentDelta) else None


def _delta_message(deltas: Sequence[Delta]) -> DeltaMessage:
    content = "".join(d.text for d in deltas if isinstance(d, ContentDelta))
    reasoning = "".join(d.text for d in deltas if isinstance(d, ReasoningDelta))
    calls = [
        ToolCallChunk(
            delta.index,
            CalledFunctionChunk(delta.arguments, UNSET if delta.name is None else delta.name),
            UNSET if delta.id is None else delta.id,
            UNSET if delta.id is None else "function",
        )
        for delta in deltas
        if isinstance(delta, ToolCallDelta)
    ]
    message = DeltaMessage()
    if content or not (reasoning or calls):
        message.content = content
    if reasoning:
        message.reasoning_content = message.reasoning = reasoning
    if calls:
        message.tool_calls = calls
    return message
