from __future__ import annotations

from vllm.parsers.tools.base import TOOL_PARSERS, ObjectCalls


@TOOL_PARSERS("hermes", "qwen25")
class HermesParser(ObjectCalls):
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes 2 Pro, Qwen 2.5 and Qwen 3."""

    begins = ("<tool_call>",)
    end = "</tool_call>"
