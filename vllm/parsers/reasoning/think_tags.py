from __future__ import annotations

from vllm.parsers.reasoning.base import REASONING_PARSERS, ReasoningParser


@REASONING_PARSERS("qwen3")
class Qwen3Parser(ReasoningParser):
    """<think>…</think>answer. Without <think>, in the text or at the end of the prompt, all is
    content, as with enable_thinking=false."""

    starts = ("<think>",)
    ends = ("</think>",)


@REASONING_PARSERS("deepseek_r1")
class DeepSeekR1Parser(Qwen3Parser):
    """…</think>answer: the text begins with reasoning, whether or not it says <think>."""

    assumes_reasoning = True
