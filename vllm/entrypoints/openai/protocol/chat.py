"""/v1/chat/completions"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from vllm.entrypoints.openai.protocol.common import (
    GenerationRequest,
    PromptLogprobsField,
    Usage,
)
from vllm.errors import BadRequest


class ChatMessageParam(BaseModel):
    """A message of the conversation; fields a template may know of its own are kept."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any] | str] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatRenderRequest(BaseModel):
    """What turns messages into a prompt."""

    messages: list[ChatMessageParam]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None


class ChatCompletionRequest(GenerationRequest, ChatRenderRequest):
    unavailable: ClassVar = {
        **GenerationRequest.unavailable,
        "audio": "leave it out: answers are text",
        "moderation": "leave it out: nothing is scored or blocked here",
    }

    logprobs: bool | None = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    echo: bool | None = False

    @model_validator(mode="after")
    def _leave_allowed_tools(self) -> Self:
        """A tool_choice of type allowed_tools is a mode, and the tools that it leaves."""
        if isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "allowed_tools":
            mode, names = _allowed(self.tool_choice)
            tools = self.tools or []
            offered = {str(_name_of(tool)) for tool in tools}
            if unknown := [name for name in names if name not in offered]:
                raise BadRequest(
                    f"tool_choice allows {', '.join(unknown)}, which is not among the tools: "
                    f"{', '.join(sorted(offered)) or '-'}",
                    "tool_choice",
                )
            self.tool_choice = mode
            self.tools = [tool for tool in tools if _name_of(tool) in names]
        return self


def _allowed(choice: dict[str, Any]) -> tuple[Literal["auto", "required"], list[str]]:
    """The mode and the names of {"type": "allowed_tools", "allowed_tools": {mode, tools}}."""
    allowed = choice.get("allowed_tools")
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    names = [_name_of(tool) for tool in tools] if isinstance(tools, list) else [None]
    if mode not in ("auto", "required") or not all(isinstance(name, str) for name in names):
        raise BadRequest(
            "tool_choice of type allowed_tools needs allowed_tools with mode, auto or required, "
            "and tools, each {'type': 'function', 'function': {'name': …}}",
            "tool_choice",
        )
    return mode, [str(name) for name in names]


def _name_of(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str  # JSON, as the model wrote it


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """What has no value is null: clients read it as an attribute of what came, and only then ask
    whether it is None. The last three are always so."""

    role: str
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCall] = []
    reasoning_content: str | None = None
    reasoning: str | None = None  # its name in newer releases of vLLM
    annotations: None = None
    audio: None = None
    function_call: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionResponse(msgspec.Struct):
    """Null, not absent, as of ChatMessage; the last three are always so."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    prompt_logprobs: PromptLogprobsField | None = None
    prompt_token_ids: list[int] | None = None
    service_tier: None = None
    system_fingerprint: None = None
    kv_transfer_params: None = None


class CalledFunctionChunk(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallChunk(msgspec.Struct):
    """A piece of a call; the first has id, type and name."""

    index: int
    function: CalledFunctionChunk
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class DeltaMessage(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET  # its name in newer releases of vLLM
    tool_calls: list[ToolCallChunk] | UnsetType = UNSET


class ChatStreamChoice(msgspec.Struct):
    index: int
    delta: DeltaMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatStreamChoice]
    usage: Usage | UnsetType = UNSET
    object: str = "chat.completion.chunk"
    prompt_token_ids: list[int] | UnsetType = UNSET
