from __future__ import annotations

from vllm.parsers.tools.base import TOOL_PARSERS, ObjectCalls


@TOOL_PARSERS("granite")
class GraniteParser(ObjectCalls):
    """<|tool_call|>[{"name": …, "arguments": {…}}, …]: Granite 3; Granite 4 writes as hermes."""

    begins = ("<|tool_call|>", "<tool_call>")
    end = "</tool_call>"


@TOOL_PARSERS("granite-20b-fc")
class GraniteFunctionCallingParser(ObjectCalls):
    """<function_call> {"name": …, "arguments": {…}}, once for each call."""

    begins = ("<function_call>",)
