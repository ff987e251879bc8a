"""The forms in which a prompt may come."""

from vllm.inputs.prompts import (
    EMPTY_PROMPT,
    ParsedPrompt,
    PromptType,
    TextPrompt,
    TokensPrompt,
    parse_prompt,
    parse_prompts,
)

__all__ = [
    "EMPTY_PROMPT",
    "ParsedPrompt",
    "PromptType",
    "TextPrompt",
    "TokensPrompt",
    "parse_prompt",
    "parse_prompts",
]
