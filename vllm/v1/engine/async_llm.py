"""AsyncLLM under vLLM's path."""

from vllm.engine.async_llm import AsyncLLM

__all__ = ["AsyncLLM"]
