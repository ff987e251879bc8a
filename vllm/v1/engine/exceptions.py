"""What an engine raises, under vLLM's path."""

from __future__ import annotations

from vllm.errors import EngineDeadError

__all__ = ["EngineDeadError", "EngineGenerateError"]


class EngineGenerateError(Exception):
    """For programs that catch it. Nothing raises it: a request that is wrong is a BadRequest, and
    one that the engine could not go on with ends with `finish_reason` "error" and its message as
    `stop_reason`."""
