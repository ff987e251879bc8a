"""The input items of a response to the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.entrypoints.openai.protocol.common import random_id
from vllm.entrypoints.openai.protocol.responses import (
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
)
from vllm.errors import BadRequest, NotAvailable

Message = dict[str, Any]
ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


class Conversation:
    """Messages made of items: what an assistant thought, said and called in a row is one."""

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.messages = list(messages)
        self.reasoning = ""  # of the assistant's message that is to come

    def add(self, item: Mapping[str, Any], where: str) -> None:
        """Raises BadRequest naming the field: `where` is the item's place in the request."""
        kind = item.get("type", "message")
        if kind == "message":
            self._add_message(item, where)
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._add_output(item, where)
        elif kind == "reasoning":
            self.reasoning += _reasoning_of(item, where)
        else:
            raise NotAvailable(
                f"{where} has type {kind!r}; this server takes message, function_call, "
                "function_call_output, reasoning and item_reference",
                f"{where}.type",
            )

    def _add_message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            raise BadRequest(
                f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}", f"{where}.role"
            )
        content = content_of(item.get("content"), f"{where}.content")
        if role == "assistant":
            assistant = self._assistant()
            # Text after a call is a turn of its own: templates show text before calls.
            if assistant.get("tool_calls") or "content" in assistant:
                assistant = self._append({"role": "assistant"})
            assistant["content"] = content
        else:
            self._append({"role": role, "content": content})

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        function = {
            "name": text_of(item, "name", where),
            "arguments": text_of(item, "arguments", where),
        }
        call = {"id": text_of(item, "call_id", where), "type": "function", "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)

    def _add_output(self, item: Mapping[str, Any], where: str) -> None:
        call_id = text_of(item, "call_id", where)
        known = {
            call["id"] for message in self.messages for call in message.get("tool_calls") or ()
        }
        if call_id not in known:
            raise BadRequest(
                f"{where}.call_id {call_id!r} is of no function_call before it; send that item "
                "too, or the previous_response_id of the response that made it",
                f"{where}.call_id",
            )
        content = content_of(item.get("output"), f"{where}.output")
        self._append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _assistant(self) -> Message:
        """The assistant's message that is being made."""
        is_last = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        if is_last and not self.reasoning:
            return self.messages[-1]
        return self._append({"role": "assistant"})

    def _append(self, message: Message) -> Message:
        if self.reasoning and message["role"] == "assistant":
            message["reasoning_content"] = self.reasoning
        self.reasoning = ""
        self.messages.append(message)
        return message


def with_ids(items: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items as a client may list them."""
    if isinstance(items, str):
        content = [{"type": "input_text", "text": items}]
        items = [{"role": "user", "content": content}]
    listed = []
    for item in items:
        kind = item.get("type", "message")
        own_id = item.get("id") or f"{ID_PREFIXES.get(str(kind), 'item')}_{random_id()}"
        listed.append({**item, "type": kind, "id": own_id})
    return listed


def add_output(conversation: Conversation, output: Sequence[OutputItem]) -> None:
    """What the model answered, as a part of the conversation that goes on from it."""
    for item in output:
        if isinstance(item, OutputMessage):
            text = "".join(part.text for part in item.content)
            conversation.add({"role": "assistant", "content": text}, "output")
        elif isinstance(item, OutputReasoning):
            conversation.reasoning += "".join(part.text for part in item.content)
        else:
            assert isinstance(item, OutputFunctionCall), item
            call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            conversation.add({"type": "function_call", **call}, "output")


def content_of(
    content: Any, where: str, parts: Mapping[str, str] = TEXT_PARTS
) -> str | list[dict[str, str]]:
    """Text, or text parts for a template that knows them. Raises BadRequest naming the part."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of parts", where)
    texts = [_part_text(part, f"{where}[{i}]", parts) for i, part in enumerate(content)]
    if len(texts) <= 1:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def _part_text(part: Any, where: str, parts: Mapping[str, str]) -> str:
    if not isinstance(part, Mapping):
        raise BadRequest(f"{where} must be an object with a type", where)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in parts:
        raise NotAvailable(
            f"{where} has type {kind!r}; this model takes text: {', '.join(parts)}", f"{where}.type"
        )
    return text_of(part, parts[kind], where)


def text_of(item: Mapping[str, Any], name: str, where: str) -> str:
    text = item.get(name)
    if not isinstance(text, str):
        raise BadRequest(f"{where}.{name} must be a string, got {text!r}"[:200], f"{where}.{name}")
    return text


def _reasoning_of(item: Mapping[str, Any], where: str) -> str:
    """What can be read of it: `encrypted_content` is another server's, which alone can."""
    found: list[str] = []
    for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
        if found or not (parts := item.get(name)):
            continue
        content = content_of(parts, f"{where}.{name}", {kind: "text"})
        found += [content] if isinstance(content, str) else [part["text"] for part in content]
    return "".join(found)


def resolve_references(
    items: Sequence[Mapping[str, Any]], find: Callable[[str], dict[str, Any] | None]
) -> list[Mapping[str, Any]]:
    """Items with those that are only named put in. Raises BadRequest for one that is not known."""
    resolved: list[Mapping[str, Any]] = []
    for i, item in enumerate(items):
        if item.get("type") != "item_reference":
            resolved.append(item)
            continue
        item_id = text_of(item, "id", f"input[{i}]")
        found = find(item_id)
        if found is None:
            raise BadRequest(
                f"input[{i}] refers to {item_id!r}, which is in no stored response; send the item "
                "itself",
                f"input[{i}].id",
            )
        resolved.append(found)
    return resolved
