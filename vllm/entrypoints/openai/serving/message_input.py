"""A request of /v1/messages as one for a chat."""

from __future__ import annotations

import json
from typing import Any

from vllm.entrypoints.openai.protocol.messages import (
    CHAT_FIELDS,
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    OutputConfig,
)
from vllm.entrypoints.openai.serving.response_input import Message, content_of, text_of
from vllm.errors import BadRequest, NotAvailable

TEXT = {"text": "text"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_fields(request: CountTokensRequest, can_think: bool) -> dict[str, Any]:
    """What both endpoints ask of a chat. `can_think`: reasoning is parsed. Raises BadRequest."""
    choice, parallel = _choice(request)
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())]
    fields = {
        "messages": chat_messages(request),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "chat_template": request.chat_template,
        "chat_template_kwargs": _template_kwargs(request, can_think),
    }
    # One message of the assistant's at the end is what its answer begins with.
    if request.messages and request.messages[-1].role == "assistant":
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    if request.output_config is not None:
        fields["reasoning_effort"] = request.output_config.effort
    return fields


def generation_fields(request: MessagesRequest) -> dict[str, Any]:
    """Raises BadRequest."""
    if request.max_tokens < 1:
        raise BadRequest(f"max_tokens must be at least 1, got {request.max_tokens}", "max_tokens")
    fields = {name: getattr(request, name) for name in CHAT_FIELDS}
    fields |= {
        "stream": True,  # each token is seen as it comes, whoever waits for the whole
        "max_completion_tokens": request.max_tokens,
        "stop": request.stop_sequences,
    }
    if request.output_config is not None and request.output_config.format is not None:
        fields["response_format"] = _format(request.output_config)
    if request.metadata is not None:
        user = request.metadata.get("user_id")
        fields["user"] = user if isinstance(user, str) else None
    return fields


def chat_messages(request: CountTokensRequest) -> list[Message]:
    """Raises BadRequest naming the block."""
    if not request.messages:
        raise BadRequest("messages is empty; it needs at least one message", "messages")
    messages: list[Message] = []
    if request.system:
        messages.append({"role": "system", "content": content_of(request.system, "system", TEXT)})
    for i, message in enumerate(request.messages):
        where = f"messages[{i}].content"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            messages.append(_assistant(message, where))
        else:
            messages += _user(message, where)
    return messages


def _assistant(message: MessageParam, where: str) -> Message:
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    reasoning = ""
    for i, block in enumerate(message.content):
        assert isinstance(block, dict), block
        at = f"{where}[{i}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(block)
        elif kind == "thinking":
            reasoning += text_of(block, "thinking", at)
        elif kind == "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise BadRequest(f"{at}.input must be an object", f"{at}.input")
            function = {"name": text_of(block, "name", at), "arguments": json.dumps(arguments)}
            calls.append({"id": text_of(block, "id", at), "type": "function", "function": function})
        else:
            raise _unknown_block(at, kind, "text, thinking and tool_use of an assistant")
    made: Message = {"role": "assistant", "content": content_of(texts, where, TEXT)}
    if calls:
        made["tool_calls"] = calls
    if reasoning:
        made["reasoning_content"] = reasoning
    return made


def _user(message: MessageParam, where: str) -> list[Message]:
    """Results of tools are messages of their own, in the order of the blocks."""
    messages: list[Message] = []
    texts: list[Any] = []

    def flush() -> None:
        if texts:
            content = content_of(list(texts), where, TEXT)
            messages.append({"role": message.role, "content": content})
            texts.clear()

    for i, block in enumerate(message.content):
        assert isinstance(block, dict), block
        at = f"{where}[{i}]"
        kind = block.get("type")
        if kind == "text":
            text_of(block, "text", at)
            texts.append(block)
        elif kind == "tool_result" and message.role == "user":
            flush()
            messages.append(_tool_result(block, at))
        else:
            raise _unknown_block(at, kind, "text and tool_result of a user")
    flush()
    if not messages:
        messages.append({"role": message.role, "content": ""})
    return messages


def _tool_result(block: dict[str, Any], where: str) -> Message:
    content = content_of(block.get("content") or "", f"{where}.content", TEXT)
    if block.get("is_error"):
        text = content if isinstance(content, str) else "\n".join(p["text"] for p in content)
        # Chat templates know no failed calls: the model reads it.
        content = f"Error: {text}"
    return {
        "role": "tool",
        "tool_call_id": text_of(block, "tool_use_id", where),
        "content": content,
    }


def _unknown_block(where: str, kind: object, allowed: str) -> NotAvailable:
    return NotAvailable(
        f"{where} has type {kind!r}; this server takes blocks of type {allowed}", f"{where}.type"
    )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise NotAvailable(
            f"{where} has type {kind!r}; this server runs no tools of its own. Declare a tool with "
            "a name and an input_schema, and run it where its call arrives",
            f"{where}.type",
        )
    function: dict[str, Any] = {"name": text_of(tool, "name", where)}
    if tool.get("description") is not None:
        function["description"] = text_of(tool, "description", where)
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise BadRequest(f"{where}.input_schema must be a JSON schema", f"{where}.input_schema")
    return {"type": "function", "function": {**function, "parameters": schema}}


def _choice(request: CountTokensRequest) -> tuple[str | dict[str, Any] | None, bool | None]:
    """The chat's tool_choice and parallel_tool_calls."""
    asked = request.tool_choice
    if asked is None:
        return None, None
    parallel = not asked.get("disable_parallel_tool_use", False)
    kind = asked.get("type")
    if kind == "tool":
        name = text_of(asked, "name", "tool_choice")
        return {"type": "function", "function": {"name": name}}, parallel
    if not isinstance(kind, str) or kind not in CHOICES:
        raise BadRequest(
            f"tool_choice.type {kind!r} must be auto, any, tool or none", "tool_choice.type"
        )
    return CHOICES[kind], parallel


def _template_kwargs(request: CountTokensRequest, can_think: bool) -> dict[str, Any] | None:
    thinking = request.thinking
    if thinking is None:
        return request.chat_template_kwargs
    if thinking.type == "enabled" and not can_think:
        raise NotAvailable(
            "thinking is not available on this server: start it with --reasoning-parser for a "
            "model that reasons, or leave thinking out",
            "thinking",
        )
    is_on = thinking.type != "disabled"
    return {"enable_thinking": is_on, **(request.chat_template_kwargs or {})}


def _format(config: OutputConfig) -> dict[str, Any]:
    asked = config.format or {}
    schema = asked.get("schema")
    if asked.get("type") != "json_schema" or not isinstance(schema, dict):
        raise BadRequest(
            "output_config.format must be of type json_schema, with a schema",
            "output_config.format",
        )
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
