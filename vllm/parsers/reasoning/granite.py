from __future__ import annotations

from vllm.parsers.reasoning.base import REASONING_PARSERS, ReasoningParser


@REASONING_PARSERS("granite")
class GraniteParser(ReasoningParser):
    """Here is my thought process: … Here is my response: …: Granite 3.2."""

    starts = ("Here is my thought process:", "Here's my thought process:")
    ends = ("Here is my response:", "Here's my response:")
