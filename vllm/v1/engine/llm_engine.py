"""LLMEngine under vLLM's path."""

from vllm.engine.llm_engine import LLMEngine

__all__ = ["LLMEngine"]
