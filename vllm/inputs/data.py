"""The forms of prompts under vLLM's older path."""

from vllm.inputs.prompts import PromptType, TextPrompt, TokensPrompt

__all__ = ["PromptType", "TextPrompt", "TokensPrompt"]
