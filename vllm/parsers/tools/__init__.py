"""Tool calls in the notations of model families."""

from vllm.parsers.tools import (
    deepseek,
    granite,
    hermes,
    llama,
    mistral,
    pythonic,
)

__all__ = ["deepseek", "granite", "hermes", "llama", "mistral", "pythonic"]
