"""AsyncLLM under its older name."""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM

AsyncLLMEngine = AsyncLLM

__all__ = ["AsyncEngineArgs", "AsyncLLMEngine"]
