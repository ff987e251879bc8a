"""The events of a streamed response, by the names that clients know."""

from __future__ import annotations

import msgspec

from vllm.entrypoints.openai.protocol.chat import TokenLogprob
from vllm.entrypoints.openai.protocol.responses import (
    OutputItem,
    OutputText,
    ReasoningText,
    ResponseObject,
)


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    sequence_number: int = -1  # until the stream has numbered it


class ResponseEvent(Event, kw_only=True):
    """Of the response as a whole. Encode it at once: the response goes on changing."""

    response: ResponseObject


class Created(ResponseEvent, tag="response.created", kw_only=True):
    pass


class Queued(ResponseEvent, tag="response.queued", kw_only=True):
    pass


class InProgress(ResponseEvent, tag="response.in_progress", kw_only=True):
    pass


class Completed(ResponseEvent, tag="response.completed", kw_only=True):
    pass


class Incomplete(ResponseEvent, tag="response.incomplete", kw_only=True):
    pass


class Failed(ResponseEvent, tag="response.failed", kw_only=True):
    pass


class ItemEvent(Event, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, tag="response.output_item.added", kw_only=True):
    pass


class ItemDone(ItemEvent, tag="response.output_item.done", kw_only=True):
    pass


class InItem(Event, kw_only=True):
    item_id: str
    output_index: int


class InPart(InItem, kw_only=True):
    content_index: int = 0


class PartAdded(InPart, tag="response.content_part.added", kw_only=True):
    part: OutputText | ReasoningText


class PartDone(InPart, tag="response.content_part.done", kw_only=True):
    part: OutputText | ReasoningText


class TextDelta(InPart, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: list[TokenLogprob] = []


class TextDone(InPart, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: list[TokenLogprob] = []


class ReasoningTextDelta(InPart, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningTextDone(InPart, tag="response.reasoning_text.done", kw_only=True):
    text: str


class ArgumentsDelta(InItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(InItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str
