"""Chat messages to a prompt, through the model's chat template.

Templates run in the immutable Jinja sandbox of transformers; whatever a template raises is the
fault of the messages or of the template, and becomes a BadRequest.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vllm.errors import BadRequest, ConfigError, NotAvailable
from vllm.inputs.text import check_encodable

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
_FORMATS: Final[tuple[ContentFormat, ContentFormat]] = ("string", "openai")
PROBES = ("content-format-probe-1", "content-format-probe-2")


def load_chat_template(value: str | None) -> str | None:
    """The template a --chat-template value means: the contents of a file, or a literal template.

    Raises ConfigError when the value is neither.
    """
    if value is None:
        return None
    if is_literal(value):
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

    `chat_template` is a template or the name of one of the tokenizer's, not a path; None takes the
    tokenizer's own. With `content_format` auto every message's content is given to the template in
    the form it has, if the template reads that. Raises BadRequest naming the field.
    """
    if not messages:
        raise BadRequest("messages is empty; a conversation needs at least one message", "messages")
    if add_generation_prompt and continue_final_message:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other: "
            "set add_generation_prompt to false to continue the final message",
            "continue_final_message",
        )
    if continue_final_message and _has_calls(messages[-1]):
        # A text goes on where its content ends: what a template writes behind it would be lost.
        raise BadRequest(
            "continue_final_message goes on with the content of the final message, which may have "
            "no tool_calls; leave them out, or answer them with messages of role 'tool'",
            f"messages[{len(messages) - 1}].tool_calls",
        )
    extra = dict(chat_template_kwargs or {})
    if reserved := RESERVED_KWARGS & extra.keys():
        raise BadRequest(
            f"chat_template_kwargs may not set {', '.join(sorted(reserved))}: "
            "these have fields of their own",
            "chat_template_kwargs",
        )
    template = _template(tokenizer, chat_template, bool(tools))

    def format_of(message: Message) -> ContentFormat:
        if content_format != "auto":
            return content_format
        return _format_of(tokenizer, template, message)

    conversation = [_normalize(i, message, format_of) for i, message in enumerate(messages)]
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
    except MemoryError:
        raise BadRequest("the chat template takes too much memory", "chat_template") from None
    except Exception as error:
        # It may quote what the template made, which need not be text that can be sent.
        reason = str(error).encode("utf-8", "backslashreplace").decode() or type(error).__name__
        raise BadRequest(f"the chat template rejects the messages: {reason}", "messages") from error
    assert isinstance(prompt, str), type(prompt)
    # A template can spell what no message may hold.
    check_encodable("chat_template", prompt, "the prompt that the chat template makes")
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


def _has_calls(message: Message) -> bool:
    return isinstance(message, Mapping) and bool(message.get("tool_calls"))


@functools.lru_cache(maxsize=128)
def reads(
    tokenizer: PreTrainedTokenizerBase, template: str, role: str, content_format: ContentFormat
) -> bool:
    """Whether the template reads the content of messages of that role as a string, or as a list of
    typed parts; many read both.

    Found by rendering a probe, since templates express it in many ways, and may read the content of
    one role otherwise than that of another.
    """
    content: Any = PROBES[0]
    if content_format == "openai":
        content = [{"type": "text", "text": probe} for probe in PROBES]
    conversation = _probe_conversation(role, content)
    try:
        text = tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False)
    except Exception:
        return False
    if not isinstance(text, str) or PROBES[0] not in text:
        return False
    if content_format == "string":
        return True
    between, found, _ = text.partition(PROBES[0])[2].partition(PROBES[1])
    # A list that is written out as such has the marks of one between its texts.
    return bool(found) and "text" not in between


def _probe_conversation(role: str, content: Any) -> list[dict[str, Any]]:
    """A message of a role where templates expect it."""
    message = {"role": role, "content": content}
    question = {"role": "user", "content": message["content"] if role == "user" else "?"}
    if role in ("system", "developer"):
        return [message, question]
    if role == "assistant":
        return [question, message, question]
    if role == "tool":
        function = {"name": "f", "arguments": {}}
        call = {"id": "call00000", "type": "function", "function": function}
        asking = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [question, asking, {**message, "tool_call_id": "call00000", "name": "f"}]
    return [message]


def _format_of(
    tokenizer: PreTrainedTokenizerBase, template: str, message: Message
) -> ContentFormat:
    """The form in which a message is given to the template: its own if the template reads that."""
    role = message.get("role")
    own, other = _FORMATS if isinstance(message.get("content"), str) else _FORMATS[::-1]
    # Where a template knows no developer, the message becomes one of the system's.
    for probed in (role, "system") if role == "developer" else (role,):
        for content_format in (own, other):
            if reads(tokenizer, template, str(probed), content_format):
                return content_format
    return "string"


def _template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, has_tools: bool
) -> str:
    named = named_templates(tokenizer)
    if chat_template is not None:
        return chat_template if is_literal(chat_template) else _named(chat_template, named)
    found = named.get("tool_use") if has_tools else None
    found = named.get("default") if found is None else found
    if found is None and named:
        raise NotAvailable(
            f"this model's tokenizer has no default chat template; name one of its templates as "
            f"chat_template: {', '.join(sorted(named))}",
            "chat_template",
        )
    if found is None:
        raise NotAvailable(
            "this model's tokenizer has no chat template, so messages cannot be turned into a "
            "prompt. Give one with --chat-template (LLM.chat: chat_template=), or send a prompt to "
            "/v1/completions (LLM.generate)",
            "messages",
        )
    return found


def named_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's own templates by name; an only one is the default."""
    own: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(own, str):
        return {"default": own}
    return dict(own or {})


def is_literal(chat_template: str) -> bool:
    """Whether it is a template, one that says nothing too, and not the name of one."""
    return not chat_template.strip() or "{" in chat_template or "\n" in chat_template


def _named(name: str, known: Mapping[str, str]) -> str:
    if name in known:
        return known[name]
    names = ", ".join(sorted(known)) or "none"
    raise BadRequest(
        f"chat_template {name!r:.100} is neither a template (it has no '{{') nor the name of one "
        f"that this model's tokenizer has; it has: {names}",
        "chat_template",
    )


def _normalize(
    index: int, message: Message, format_of: Callable[[Message], ContentFormat]
) -> dict[str, Any]:
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
        normal["content"] = _join_text(parts) if format_of(message) == "string" else parts
    elif format_of(message) == "openai":
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
