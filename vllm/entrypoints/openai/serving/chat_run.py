"""One conversation being answered: engine outputs as the parts of messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from vllm.entrypoints.openai.streaming import UsageMeter
from vllm.outputs import CompletionOutput, PromptLogprobs, RequestOutput
from vllm.parsers.deltas import Delta
from vllm.parsers.message import Message

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


class MessageUpdate(NamedTuple):
    """What one engine output did to one choice."""

    index: int
    deltas: list[Delta]
    sequence: CompletionOutput
    finish_reason: str | None  # "tool_calls" where the message ends with calls


class ChatRun:
    """Owns the generation: ending `updates` early aborts it."""

    def __init__(
        self,
        response_id: str,
        model: str,
        meter: UsageMeter,
        outputs: Outputs,
        make_parser: Callable[[], Message],
    ) -> None:
        self.id = response_id
        self.model = model
        self.meter = meter
        self.outputs = outputs
        self.prompt_token_ids: list[int] = []  # from the first output on
        self.prompt_logprobs: PromptLogprobs | None = None
        self._make_parser = make_parser
        self._parsers: dict[int, Message] = {}

    async def updates(self) -> AsyncGenerator[list[MessageUpdate], None]:
        """Per engine output one list. Raises BadRequest, EngineDeadError or GenerationFailed."""
        async with aclosing(self.outputs):
            async for prompt_idx, output in self.outputs:
                yield self.push(prompt_idx, output)

    def push(self, prompt_idx: int, output: RequestOutput) -> list[MessageUpdate]:
        self.meter.push(prompt_idx, output)
        if output.prompt_token_ids is not None:
            self.prompt_token_ids = list(output.prompt_token_ids)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        return [self._update(sequence) for sequence in output.outputs]

    def _update(self, sequence: CompletionOutput) -> MessageUpdate:
        parser = self._parsers.get(sequence.index)
        if parser is None:
            parser = self._parsers[sequence.index] = self._make_parser()
        deltas = parser.push(sequence.text)
        reason = sequence.finish_reason
        if reason is not None:
            deltas += parser.finish()
            if reason == "stop" and parser.has_calls:
                reason = "tool_calls"
        return MessageUpdate(sequence.index, deltas, sequence, reason)
