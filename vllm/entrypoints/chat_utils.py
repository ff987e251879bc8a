"""Chat messages to a prompt, through the model's chat template.

Templates run in the immutable Jinja sandbox of transformers; whatever a template raises is the
fault of the messages or of the template, and becomes a BadRequest.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm.errors import BadRequest, ConfigError, NotAvailable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ContentFormat = Literal["string", "openai"]
Message = Mapping[str, Any]

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# Arguments of apply_chat_template that a request must not reach through chat_template_kwargs.
RESERVED_KWARGS = {
    "conversation",
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}
PROBE = "content-format-probe"


def load_chat_template(value: str | None) -> str | None:
    """The template a --chat-template value means: the contents of a file, or a literal template.

    Raises ConfigError when the value is neither.
    """
    if value is None:
        return None
    if "{" in value or "\n" in value:
        return value
    path = Path(value)
    if not path.is_file():
        raise ConfigError(
            f"--chat-template {value}: there is no such file, and the value is not a literal "
            "template (it has no '{'). Give the path of a Jinja file or the template itself."
        )
    return path.read_text(encoding="utf-8")


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    content_format: ContentFormat | Literal["auto"] = "auto",
) -> str | list[int]:
    """The prompt of a conversation; text already holds its special tokens, so encode it without.

    `chat_template` is a template, not a path; None takes the tokenizer's own. Raises BadRequest
    naming the field.
    """
    if not messages:
        raise BadRequest("messages is empty; a conversation needs at least one message", "messages")
    if add_generation_prompt and continue_final_message:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other: "
            "set add_generation_prompt to false to continue the final message",
            "continue_final_message",
        )
    extra = dict(chat_template_kwargs or {})
    if reserved := RESERVED_KWARGS & extra.keys():
        raise BadRequest(
            f"chat_template_kwargs may not set {', '.join(sorted(reserved))}: "
            "these have fields of their own",
            "chat_template_kwargs",
        )
    template = _template(tokenizer, chat_template, bool(tools))
    if content_format == "auto":
        content_format = detect_content_format(tokenizer, template)
    conversation = [_normalize(i, message, content_format) for i, message in enumerate(messages)]
    if continue_final_message and not isinstance(conversation[-1].get("content"), str):
        conversation[-1]["content"] = _join_text(conversation[-1].get("content") or [])
    arguments = {
        "tools": [dict(tool) for tool in tools] if tools else None,
        "chat_template": template,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "tokenize": False,
        **extra,
    }
    try:
        prompt = _apply(tokenizer, conversation, arguments)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise BadRequest(
            f"the chat template rejects these messages: {reason}", "messages"
        ) from error
    assert isinstance(prompt, str), type(prompt)
    return prompt


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[dict[str, Any]],
    arguments: dict[str, Any],
) -> Any:
    """Templates that know no developer are given a system message instead."""
    try:
        return tokenizer.apply_chat_template(conversation, **arguments)
    except Exception:
        if not any(message["role"] == "developer" for message in conversation):
            raise
        renamed = [
            {**message, "role": "system"} if message["role"] == "developer" else message
            for message in conversation
        ]
        return tokenizer.apply_chat_template(renamed, **arguments)


@functools.lru_cache(maxsize=64)
def detect_content_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ContentFormat:
    """What the template reads as a message's content: a string, or a list of typed parts.

    Found by rendering a probe both ways, since templates express it in many forms.
    """
    contents: dict[ContentFormat, Any] = {
        "string": PROBE,
        "openai": [{"type": "text", "text": PROBE}],
    }
    for content_format, content in contents.items():
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=template, tokenize=False
            )
        except Exception:
            continue
        if isinstance(text, str) and PROBE in text:
            return content_format
    return "string"


def _template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, has_tools: bool
) -> str:
    if chat_template is not None:
        return chat_template
    named: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(named, dict):
        wanted = "tool_use" if has_tools and "tool_use" in named else "default"
        named = named.get(wanted)
    if named is None:
        raise NotAvailable(
            "this model's tokenizer has no chat template, so messages cannot be turned into a "
            "prompt. Give one with --chat-template (LLM.chat: chat_template=), or send a prompt to "
            "/v1/completions (LLM.generate)",
            "messages",
        )
    return named


def _normalize(index: int, message: Message, content_format: ContentFormat) -> dict[str, Any]:
    """A message as templates expect it: without absent fields, arguments of calls parsed."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} must be an object with role and content", "messages")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadRequest(f"{where}.role must be a string such as 'user'", f"{where}.role")
    normal = {key: value for key, value in message.items() if value is not None}
    content = normal.get("content")
    if content is None:
        if role != "assistant":
            raise BadRequest(f"{where}.content is missing", f"{where}.content")
        normal["content"] = ""
    elif not isinstance(content, str):
        parts = _text_parts(content, f"{where}.content")
        normal["content"] = _join_text(parts) if content_format == "string" else parts
    elif content_format == "openai":
        normal["content"] = [{"type": "text", "text": content}]
    if calls := normal.get("tool_calls"):
        normal["tool_calls"] = [
            _parsed_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    return normal


def _text_parts(content: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(content, Sequence):
        raise BadRequest(f"{where} must be a string or a list of parts", where)
    return [_text_part(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _text_part(part: Any, where: str) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise BadRequest(f"{where} must be a string or an object with a type", where)
    kind = part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise NotAvailable(
            f"{where} has type {kind!r}; this model takes text only. Send parts of type 'text'",
            f"{where}.type",
        )
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise BadRequest(f"{where}.{TEXT_PARTS[kind]} must be a string", where)
    return {"type": "text", "text": text}


def text_of(content: str | Sequence[Any] | None) -> str:
    """The text of a message's content, in whatever form it was given. Raises BadRequest."""
    if content is None or isinstance(content, str):
        return content or ""
    return _join_text(_text_parts(content, "messages[-1].content"))


def _join_text(parts: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _parsed_call(call: Any, where: str) -> dict[str, Any]:
    """A tool call of an earlier turn, its JSON arguments as the object that templates expect."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise BadRequest(f"{where} must be an object with a function", where)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise BadRequest(f"{where}.function.arguments is not JSON: {error}", where) from error
    return {**call, "function": {**function, "arguments": arguments}}
