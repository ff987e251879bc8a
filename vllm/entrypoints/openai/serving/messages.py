"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Final

import msgspec

from vllm.entrypoints.openai.errors import error_of
from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.protocol.common import random_id
from vllm.entrypoints.openai.protocol.messages import (
    ApiError,
    CountTokensRequest,
    ErrorEvent,
    Event,
    MessageObject,
    MessagesRequest,
    MessageUsage,
    TokenCount,
)
from vllm.entrypoints.openai.serving.chat_run import ChatRun, MessageUpdate
from vllm.entrypoints.openai.serving.chat_source import ChatSource, chat_request, named_as_asked
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.serving.message_events import MessageStream
from vllm.entrypoints.openai.serving.message_input import chat_fields, generation_fields
from vllm.entrypoints.openai.streaming import UsageMeter
from vllm.logger import init_logger

logger = init_logger(__name__)
# What a chat's errors name, in the terms of a message.
NAMES: Final = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
encoder = msgspec.json.Encoder()


class ServingMessages:
    def __init__(self, context: ServingContext, chat: ChatSource) -> None:
        self.context = context
        self.chat = chat

    async def create(self, request: MessagesRequest, header_id: str | None) -> MessageObject:
        run = await self._start(request, header_id)
        async with aclosing(run.events()) as events:
            async for _ in events:
                pass
        return run.blocks.message

    async def stream(
        self, request: MessagesRequest, header_id: str | None
    ) -> AsyncGenerator[bytes, None]:
        return (await self._start(request, header_id)).stream()

    async def count_tokens(self, request: CountTokensRequest) -> TokenCount:
        """Of the prompt that a message with the same fields would have. Raises BadRequest."""
        request.warn_about_unknown_fields()
        self.context.resolve_model(request.model)
        with named_as_asked(NAMES):
            chat = self._chat(request, {})
            if chat.reasoning_effort is not None:
                effort = {"reasoning_effort": chat.reasoning_effort}
                chat.chat_template_kwargs = effort | (chat.chat_template_kwargs or {})
            defaults = self.context.options.default_chat_template_kwargs
            chat.chat_template_kwargs = {**defaults, **(chat.chat_template_kwargs or {})}
            _, ids = await self.context.render(chat)
        return TokenCount(len(ids))

    async def _start(self, request: MessagesRequest, header_id: str | None) -> MessageRun:
        self.context.admission.check()
        request.warn_about_unknown_fields()
        self.context.resolve_model(request.model)
        with named_as_asked(NAMES):
            chat = self._chat(request, generation_fields(request))
            return MessageRun(await self.chat.start(chat, header_id), request.request_id)

    def _chat(self, request: CountTokensRequest, more: dict[str, Any]) -> ChatCompletionRequest:
        request.refuse_what_is_unavailable()
        can_think = bool(self.context.options.reasoning_parser)
        return chat_request({**more, **chat_fields(request, can_think)})


class MessageRun:
    """One message being made."""

    def __init__(self, chat: ChatRun, request_id: str | None) -> None:
        self.chat = chat
        message_id = f"msg_{request_id or random_id()}"
        self.blocks = MessageStream(MessageObject(message_id, chat.model, _usage(chat.meter)))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Encoded, one item per engine output. Raises what the engine does."""
        has_begun = False
        reason: str | None = None
        stop: int | str | None = None
        async with aclosing(self.chat.updates()) as updates:
            while (bunch := await self._next(updates)) is not None:
                made = b""
                if not has_begun:
                    has_begun = True
                    self.blocks.message.usage = _usage(self.chat.meter, num_output=0)
                    made += _encoded(self.blocks.begin())
                for update in bunch:
                    made += _encoded(self.blocks.push(update.deltas))
                    reason, stop = update.finish_reason, update.sequence.stop_reason
                if made:
                    yield made
        yield _encoded(self.blocks.finish(reason, stop, _usage(self.chat.meter)))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """A failure after the first event is told as one."""
        has_begun = False
        try:
            async with aclosing(self.events()) as events:
                async for event in events:
                    has_begun = True
                    yield event
        except Exception as error:
            if not has_begun:
                raise
            logger.exception("a message ended with an error")
            yield _encoded([error_body(error)])

    async def _next(
        self, updates: AsyncGenerator[list[MessageUpdate], None]
    ) -> list[MessageUpdate] | None:
        with named_as_asked(NAMES):
            return await anext(updates, None)


def error_body(error: Exception) -> ErrorEvent:
    detail = error_of(error).error
    assert detail.code is not None
    return error_of_status(detail.code, detail.message)


def error_of_status(status: int, message: str) -> ErrorEvent:
    return ErrorEvent(ApiError(ERROR_TYPES.get(status, "api_error"), message))


def _usage(meter: UsageMeter, num_output: int | None = None) -> MessageUsage:
    """Tokens that were in the prefix cache are counted apart from the input's others."""
    usage = meter.usage()
    cached = sum(meter.num_cached_tokens.values())
    if num_output is None:
        num_output = usage.completion_tokens
    return MessageUsage(usage.prompt_tokens - cached, num_output, cached)


def _encoded(events: Iterable[Event]) -> bytes:
    """At once, one by one: events refer to blocks that go on changing."""
    return b"".join(
        b"event: %b\ndata: %b\n\n"
        % (str(event.__struct_config__.tag).encode(), encoder.encode(event))
        for event in events
    )
