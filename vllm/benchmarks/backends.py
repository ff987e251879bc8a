"""The shapes that a request and its events have at each endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    path: str
    limit: str  # the field that says how many tokens to generate
    takes_tokens: bool  # prompts may be token ids
    prompt: Callable[[Any], dict[str, Any]]
    text: Callable[[Event], str | None]  # of a choice of an event; None: it brings no token

    def body(self, prompt: list[int] | str, max_tokens: int) -> dict[str, Any]:
        return {
            **self.prompt(prompt),
            self.limit: max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def _completion_prompt(prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt}


def _chat_prompt(prompt: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}]}


def _completion_text(choice: Event) -> str | None:
    return str(choice.get("text") or "")


def _chat_text(choice: Event) -> str | None:
    delta = choice.get("delta") or {}
    said = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    if said:
        return str(said)
    # The chunk that only says the role comes before there is a token.
    return "" if delta.get("tool_calls") or choice.get("finish_reason") else None


_COMPLETIONS = Backend("/v1/completions", "max_tokens", True, _completion_prompt, _completion_text)
BACKENDS: dict[str, Backend] = {
    "openai": _COMPLETIONS,
    "vllm": _COMPLETIONS,
    "openai-chat": Backend(
        "/v1/chat/completions", "max_completion_tokens", False, _chat_prompt, _chat_text
    ),
}
