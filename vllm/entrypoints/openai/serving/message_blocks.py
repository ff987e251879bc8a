"""Content blocks of /v1/messages that are text under another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.serving.response_input import content_of, text_of
from vllm.errors import BadRequest, NotAvailable

TEXT = {"text": "text"}
READABLE = "text, search_result and document (whose source is text)"


def read_content(content: Any, where: str, allowed: str = READABLE) -> str | list[dict[str, str]]:
    """A string or blocks as a template takes them. Raises BadRequest naming the block."""
    if isinstance(content, list):
        content = [
            {"type": "text", "text": read_block(block, f"{where}[{i}]", allowed)}
            for i, block in enumerate(content)
        ]
    return content_of(content, where, TEXT)


def read_block(block: Any, where: str, allowed: str = READABLE) -> str:
    """Its text. Raises BadRequest."""
    if not isinstance(block, Mapping):
        raise BadRequest(f"{where} must be an object with a type", where)
    kind = block.get("type")
    if kind == "text":
        return text_of(block, "text", where)
    if kind == "search_result":
        heads = (text_of(block, "title", where), text_of(block, "source", where))
        return _joined(*heads, _plain(block.get("content"), f"{where}.content"))
    if kind == "document":
        heads = tuple(
            text_of(block, name, where) for name in ("title", "context") if block.get(name)
        )
        return _joined(*heads, _source(block.get("source"), f"{where}.source"))
    raise unknown_block(where, kind, allowed)


def read_result(content: Any, where: str) -> str | list[dict[str, str]]:
    """What a tool has answered. A reference to a tool is its name: all tools are always shown."""
    if isinstance(content, list):
        content = [
            {"type": "text", "text": text_of(block, "tool_name", f"{where}[{i}]")}
            if isinstance(block, Mapping) and block.get("type") == "tool_reference"
            else block
            for i, block in enumerate(content)
        ]
    return read_content(content, where, f"tool_reference, {READABLE}")


def unknown_block(where: str, kind: object, allowed: str) -> NotAvailable:
    return NotAvailable(
        f"{where} has type {kind!r}; this server takes blocks of type {allowed}", f"{where}.type"
    )


def _source(source: Any, where: str) -> str:
    if isinstance(source, Mapping):
        if source.get("type") == "text":
            return text_of(source, "data", where)
        if source.get("type") == "content":
            return _plain(source.get("content"), f"{where}.content")
    kind = source.get("type") if isinstance(source, Mapping) else source
    raise NotAvailable(
        f"{where} is of type {kind!r:.100}; this model takes text: send the document's text as a "
        "source of type text",
        f"{where}.type",
    )


def _plain(content: Any, where: str) -> str:
    found = content_of(content, where, TEXT)
    return found if isinstance(found, str) else "\n".join(part["text"] for part in found)


def _joined(*texts: str) -> str:
    return "\n".join(filter(None, texts))
