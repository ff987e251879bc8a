"""Prompts: text or token ids, bare or in a dict with what goes with them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from typing_extensions import NotRequired

from vllm.errors import BadRequest, NotAvailable
from vllm.inputs.text import check_encodable


class TextPrompt(TypedDict):
    prompt: str
    cache_salt: NotRequired[str]  # prompts share cached prefixes only with those of the same salt


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]
    prompt: NotRequired[str]  # the same prompt as text, to be repeated in the output
    cache_salt: NotRequired[str]


PromptType = str | list[int] | TextPrompt | TokensPrompt

# With the words that programs look for in such errors of vLLM.
EMPTY_PROMPT = "the decoder prompt cannot be empty; it needs at least one token"
KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})
UNAVAILABLE_KEYS = {
    "multi_modal_data": "images, audio and video",
    "multi_modal_uuids": "images, audio and video",
    "mm_processor_kwargs": "images, audio and video",
    "prompt_embeds": "prompts of embeddings",
    "encoder_prompt": "encoder-decoder models",
    "decoder_prompt": "encoder-decoder models",
}


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """At least one of text and token ids is there; token ids win."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str | None = None


def parse_prompt(prompt: Any) -> ParsedPrompt:
    """One prompt. Raises BadRequest, NotAvailable for a kind that this engine cannot take."""
    if isinstance(prompt, str):
        return _text_prompt(prompt, None)
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt)
    if isinstance(prompt, list | tuple | np.ndarray):
        return ParsedPrompt(None, _token_ids(prompt))
    raise BadRequest(
        f"a prompt must be text, a list of token ids, or a dict with 'prompt' or "
        f"'prompt_token_ids'; got a {type(prompt).__name__}",
        "prompt",
    )


def parse_prompts(prompts: Any) -> list[ParsedPrompt]:
    """One prompt or a sequence of any mixture of kinds. A list of integers is one prompt."""
    is_sequence = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes)
    if not is_sequence or (len(prompts) and _is_integer(prompts[0])):
        return [parse_prompt(prompts)]
    return [parse_prompt(prompt) for prompt in prompts]


def _parse_mapping(prompt: Mapping[str, Any]) -> ParsedPrompt:
    given = {key for key, value in prompt.items() if value is not None}
    for key in sorted(given & UNAVAILABLE_KEYS.keys()):
        raise NotAvailable(
            f"a prompt with {key!r} needs {UNAVAILABLE_KEYS[key]}, which this engine does not have "
            "yet; leave it out",
            key,
        )
    if unknown := sorted(given - KEYS):
        raise BadRequest(
            f"a prompt has no {', '.join(map(repr, unknown))}; "
            f"it may have {', '.join(sorted(KEYS))}",
            str(unknown[0]),
        )
    text, token_ids, salt = (
        prompt.get(key) for key in ("prompt", "prompt_token_ids", "cache_salt")
    )
    if text is not None and not isinstance(text, str):
        raise BadRequest(f"'prompt' must be text, got a {type(text).__name__}", "prompt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise BadRequest(f"'cache_salt' must be text of some length, got {salt!r}", "cache_salt")
    if salt is not None:
        check_encodable("cache_salt", salt)
    if token_ids is not None:
        return ParsedPrompt(text, _token_ids(token_ids), salt)
    if text is None:
        raise BadRequest("a prompt dict needs 'prompt' or 'prompt_token_ids'", "prompt")
    return _text_prompt(text, salt)


def _text_prompt(text: str, salt: str | None) -> ParsedPrompt:
    # Empty or not shows when it is tokenized: there may be a token that begins every text.
    check_encodable("prompt", text)
    return ParsedPrompt(text, None, salt)


def _token_ids(values: Any) -> list[int]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    try:
        values = list(values)
        if bool in set(map(type, values)):
            raise TypeError("True is no token")
        return list(map(operator.index, values))
    except TypeError:
        raise BadRequest(
            "the token ids of a prompt must be a flat list of integers", "prompt_token_ids"
        ) from None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
