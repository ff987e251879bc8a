"""/v1/responses: what is asked, and what is answered whole. Its events: response_events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field

from vllm.entrypoints.openai.protocol.chat import TokenLogprob
from vllm.entrypoints.openai.protocol.common import SharedRequest
from vllm.errors import NotAvailable

MAX_ITEMS = 10_000
LOGPROBS = "message.output_text.logprobs"
# The others are of items that no answer here has, or of reasoning that is hidden, which none is.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]

# Fields that mean the same, under the same name, to /v1/chat/completions.
CHAT_FIELDS = (
    *SharedRequest.model_fields,
    "chat_template",
    "chat_template_kwargs",
    "parallel_tool_calls",
)


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: Any = Field(None, alias="schema")


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # a hint that no template takes


class ReasoningConfig(BaseModel):
    model_config = ConfigDict(extra="allow")

    effort: str | None = None
    # No summary is made, of whichever kind: reasoning is given whole.
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    mode: str | None = None


class ContextEdit(BaseModel):
    """Compaction from so many tokens on. Nothing is ever compacted: what is too long is refused."""

    model_config = ConfigDict(extra="allow")

    type: Literal["compaction"]


class ResponsesRequest(SharedRequest):
    """None: the default of the model or the engine."""

    # Values that ask for nothing, and what to do about the others.
    unavailable: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "conversation": ((), "use previous_response_id"),
        "moderation": ((), "leave it out"),
        "prompt": ((), "send instructions and input"),
    }

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    background: bool | None = False
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[Includable] | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Every prefix is cached, for as long as there is room.
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    # What is too long is refused either way: nothing is dropped.
    context_management: list[ContextEdit] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: int | None = None  # of tools that servers run, of which there are none
    service_tier: str | None = None  # there is one

    conversation: Any = None
    moderation: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None

    request_id: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def refuse_what_is_unavailable(self) -> None:
        """Raises NotAvailable for a field whose value would have to be ignored."""
        for name, (neutral, remedy) in self.unavailable.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise NotAvailable(f"{name} {value!r} is not available here; {remedy}", name)


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str = ""


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: str = "in_progress"
    content: list[OutputText] = []
    role: str = "assistant"


class OutputReasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    status: str = "in_progress"
    content: list[ReasoningText] = []
    summary: list[Any] = []


class OutputFunctionCall(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: str = "in_progress"


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class InputDetails(msgspec.Struct):
    cached_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseObject(msgspec.Struct):
    """The answer, or as much of it as there is."""

    id: str
    created_at: int
    model: str
    status: str
    instructions: str | None
    metadata: dict[str, str]
    previous_response_id: str | None
    background: bool
    store: bool
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    parallel_tool_calls: bool
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    reasoning: dict[str, Any]
    text: dict[str, Any]
    user: str | None
    output: list[OutputItem] = []
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    completed_at: int | None = None
    service_tier: str = "default"
    truncation: str = "disabled"
    object: str = "response"
    safety_identifier: str | UnsetType = UNSET
    prompt_cache_key: str | UnsetType = UNSET

    @property
    def is_running(self) -> bool:
        return self.status in ("queued", "in_progress")


class InputItems(msgspec.Struct):
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct):
    id: str
    object: str = "response"
    deleted: bool = True
