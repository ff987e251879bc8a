"""/v1/messages: Anthropic's shape of a chat, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from vllm.entrypoints.openai.protocol.common import RequestModel
from vllm.errors import BadRequest, NotAvailable

# Fields that mean the same, under the same name, to /v1/chat/completions.
CHAT_FIELDS = (
    "model temperature top_p top_k min_p seed repetition_penalty ignore_eos min_tokens "
    "truncate_prompt_tokens structured_outputs chat_template chat_template_kwargs priority "
    "request_id cache_salt"
).split()


class MessageParam(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]] | None = None
    clear_at: Literal["next_user_message", "never"] | None = None
    output_config: dict[str, Any] | None = None  # of a turn; only the request's is gone by

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        """One of the system's may be there for its output_config alone."""
        if self.content is None and (self.role != "system" or self.output_config is None):
            raise BadRequest(
                f"a message of role {self.role!r} needs content: text, or a list of blocks",
                "messages",
            )
        return self


class Thinking(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = None


class OutputConfig(BaseModel):
    model_config = ConfigDict(extra="allow")

    effort: str | None = None
    format: dict[str, Any] | None = None


class CountTokensRequest(RequestModel):
    """What makes the prompt."""

    # Values that ask for nothing, and what to do about the others.
    unavailable: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "compaction": ((), "leave it out; ask for a summary in a message"),
        "container": ((), "leave it out"),
        "mcp_servers": (([],), "declare functions as tools, and run them yourself"),
        "thread": ((), "leave it out; send the whole conversation"),
    }

    messages: list[MessageParam]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Every prefix is cached as it is.
    cache_control: dict[str, Any] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    context_management: dict[str, Any] | None = None
    # There is one of each.
    service_tier: str | None = None
    speed: str | None = None

    compaction: Any = None
    container: Any = None
    mcp_servers: list[Any] | None = None
    thread: Any = None

    def refuse_what_is_unavailable(self) -> None:
        """Raises NotAvailable for a field whose value would have to be ignored."""
        for name, (neutral, remedy) in self.unavailable.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise NotAvailable(f"{name} {value!r} is not available here; {remedy}", name)


class MessagesRequest(CountTokensRequest):
    """None: the default of the model or the engine."""

    max_tokens: int
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None

    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str = ""
    citations: None = None


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageObject(msgspec.Struct):
    id: str
    model: str
    usage: MessageUsage
    content: list[Block] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"
    type: str = "message"


class TokenCount(msgspec.Struct):
    input_tokens: int


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class StopDelta(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None


class Event(msgspec.Struct, tag_field="type"):
    pass


class MessageStart(Event, tag="message_start"):
    message: MessageObject


class Ping(Event, tag="ping"):
    pass


class BlockStart(Event, tag="content_block_start"):
    index: int
    content_block: Block


class BlockChange(Event, tag="content_block_delta"):
    index: int
    delta: BlockDelta


class BlockStop(Event, tag="content_block_stop"):
    index: int


class MessageChange(Event, tag="message_delta"):
    delta: StopDelta
    usage: MessageUsage


class MessageStop(Event, tag="message_stop"):
    pass


class ApiError(msgspec.Struct):
    type: str
    message: str


class ErrorEvent(Event, tag="error"):
    """Also the body of an answer that is an error."""

    error: ApiError
