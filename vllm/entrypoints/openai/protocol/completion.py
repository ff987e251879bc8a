"""/v1/completions"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field, StrictInt, StrictStr, field_validator

from vllm.entrypoints.openai.protocol.common import (
    GenerationRequest,
    PromptLogprobsField,
    Usage,
)
from vllm.errors import BadRequest

DEFAULT_MAX_TOKENS = 16
CompletionPrompt = Annotated[
    StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]],
    Field(union_mode="left_to_right"),
]


class CompletionRequest(GenerationRequest):
    unavailable: ClassVar = {
        **GenerationRequest.unavailable,
        "suffix": "leave it out: no model served here fills in the middle",
        "prompt_embeds": "send the prompt as text or as token ids",
    }
    streams_prompt_logprobs: ClassVar = True

    prompt: CompletionPrompt | None = None
    prompt_embeds: Any = None
    suffix: str | None = None
    echo: bool | None = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_kinds(cls, prompt: Any) -> Any:
        """One message instead of one per alternative of the union."""
        if prompt is not None and not _is_prompt(prompt):
            raise BadRequest(
                "prompt must be text, a list of texts, a list of token ids, or a list of lists of "
                "token ids, and not a mixture",
                "prompt",
            )
        return prompt


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    if kinds == {list}:
        return set(map(type, itertools.chain.from_iterable(value))) <= {int}
    return kinds in ({str}, {int}, set())


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry per token; offsets count characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]

    def extend(self, later: CompletionLogprobs) -> None:
        self.text_offset += later.text_offset
        self.token_logprobs += later.token_logprobs
        self.tokens += later.tokens
        self.top_logprobs += later.top_logprobs


class CompletionChoice(msgspec.Struct):
    """Of a response, and of a chunk of a stream. What has no value is null: see ChatMessage."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobsField | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionResponse(msgspec.Struct):
    """Of a whole answer, and of a chunk of a stream (where most have no usage)."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    object: str = "text_completion"
    # Always null.
    service_tier: None = None
    system_fingerprint: None = None
    kv_transfer_params: None = None
