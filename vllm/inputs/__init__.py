"""The forms in which a prompt may come."""

from vllm.inputs.prompts import (
    ParsedPrompt,
    PromptType,
    TextPrompt,
    TokensPrompt,
    parse_prompt,
    parse_prompts,
)

__all__ = [
    "ParsedPrompt",
    "PromptType",
    "TextPrompt",
    "TokensPrompt",
    "parse_prompt",
    "parse_prompts",
]
