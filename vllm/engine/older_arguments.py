"""Arguments of vLLM's methods that ask for what is not here, and those in another shape."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vllm.errors import NotAvailable

if TYPE_CHECKING:
    from vllm.executor.control import Method

REFUSED: Final[Mapping[str, str]] = {
    "lora_request": "LoRA adapters are not available yet; leave it out",
    "prompt_text": "a prompt of token ids brings its text with it, as "
    '{"prompt_token_ids": [...], "prompt": "..."}',
    "tokenization_kwargs": "encode the prompt yourself and give its token ids, or use "
    "truncate_prompt_tokens of SamplingParams",
    "stat_loggers": "loggers of vLLM's kind are told of its own scheduler; use "
    "add_stat_logger, or read /metrics",
    "mm_processor_kwargs": "models take text; leave it out",
}


def refuse(**arguments: Any) -> None:
    """Raises NotAvailable for one of REFUSED that is not None."""
    for name, value in arguments.items():
        if value is not None:
            raise NotAvailable(f"{name} is not available: {REFUSED[name]}", name)


def with_keywords(method: Method, keywords: Mapping[str, Any] | None) -> Method:
    """A function with its keyword arguments bound, as one that takes none."""
    if not keywords:
        return method
    if isinstance(method, str):
        raise NotAvailable("a Worker's method takes no keyword arguments; use args", "kwargs")
    return functools.partial(method, **keywords)
