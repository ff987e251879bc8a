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
from vllm.entrypoints.openai.serving.message_blocks import (
    READABLE,
    TEXT,
    read_block,
    read_result,
    unknown_block,
)
from vllm.entrypoints.openai.serving.response_input import Message, content_of, text_of
from vllm.entrypoints.openai.serving.response_tools import check_callers
from vllm.errors import BadRequest, NotAvailable

CLEAR_THINKING = "clear_thinking_20251015"
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
    kept = _thinking_turns(request.context_management)
    if request.system:
        messages.append({"role": "system", "content": content_of(request.system, "system", TEXT)})
    for i, message in enumerate(request.messages):
        if message.content is None or _is_cleared(message, request.messages[i + 1 :]):
            continue
        where = f"messages[{i}].content"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            messages.append(_assistant(message, where))
        else:
            messages += _user(message, where)
    if not messages:
        raise BadRequest("messages has no content; it needs at least one message", "messages")
    if calls := messages[-1].get("tool_calls"):
        names = ", ".join(repr(call["id"]) for call in calls)
        raise BadRequest(
            f"messages ends with the tool_use {names}, without a result: send a message of the "
            "user's with its tool_result, or leave the call out",
            f"messages[{len(request.messages) - 1}].content",
        )
    _clear_thinking(messages, kept)
    return messages


def _is_cleared(message: MessageParam, later: list[MessageParam]) -> bool:
    """A system message of one turn is gone once the next of the user's has come."""
    return message.clear_at == "next_user_message" and any(m.role == "user" for m in later)


def _thinking_turns(management: dict[str, Any] | None) -> int | None:
    """Turns of the assistant's, the last ones, whose thinking stays; None: all.

    Raises NotAvailable for an edit that would take away anything else.
    """
    edits = (management or {}).get("edits") or []
    if not isinstance(edits, list):
        raise BadRequest("context_management.edits must be a list", "context_management")
    kept: int | None = None
    for i, edit in enumerate(edits):
        where = f"context_management.edits[{i}]"
        kind = edit.get("type") if isinstance(edit, dict) else None
        if kind != CLEAR_THINKING:
            raise NotAvailable(
                f"{where} has type {kind!r:.100}; this server only knows {CLEAR_THINKING}. Leave "
                "the edit out, and send a shorter conversation",
                "context_management",
            )
        keep = edit.get("keep", {"type": "thinking_turns", "value": 1})
        if keep in ("all", {"type": "all"}):
            continue
        asks = isinstance(keep, dict) and keep.get("type") == "thinking_turns"
        turns = keep.get("value") if asks else None
        if type(turns) is not int or turns < 1:
            raise BadRequest(
                f"{where}.keep {keep!r:.100} must be 'all', {{'type': 'all'}} or {{'type': "
                "'thinking_turns', 'value': N}, N at least 1",
                "context_management",
            )
        kept = turns if kept is None else min(kept, turns)
    return kept


def _clear_thinking(messages: list[Message], kept: int | None) -> None:
    if kept is not None:
        thoughtful = [message for message in messages if "reasoning_content" in message]
        for message in thoughtful[:-kept]:
            del message["reasoning_content"]


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
        elif kind == "redacted_thinking":
            pass  # encrypted by another server, which alone can read it
        elif kind == "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise BadRequest(f"{at}.input must be an object", f"{at}.input")
            function = {"name": text_of(block, "name", at), "arguments": json.dumps(arguments)}
            calls.append({"id": text_of(block, "id", at), "type": "function", "function": function})
        else:
            allowed = "text, thinking, redacted_thinking and tool_use of an assistant"
            raise unknown_block(at, kind, allowed)
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
        if kind == "tool_result" and message.role == "user":
            flush()
            messages.append(_tool_result(block, at))
        else:
            allowed = f"tool_result, {READABLE} of a user"
            texts.append({"type": "text", "text": read_block(block, at, allowed)})
    flush()
    if not messages:
        messages.append({"role": message.role, "content": ""})
    return messages


def _tool_result(block: dict[str, Any], where: str) -> Message:
    content = read_result(block.get("content") or "", f"{where}.content")
    if block.get("is_error"):
        text = content if isinstance(content, str) else "\n".join(p["text"] for p in content)
        # Chat templates know no failed calls: the model reads it.
        content = f"Error: {text}"
    return {
        "role": "tool",
        "tool_call_id": text_of(block, "tool_use_id", where),
        "content": content,
    }


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise NotAvailable(
            f"{where} has type {kind!r}; this server runs no tools of its own. Declare a tool with "
            "a name and an input_schema, and run it where its call arrives",
            f"{where}.type",
        )
    check_callers(tool, where)
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
