"""A message's deltas to the blocks of /v1/messages, and to the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from vllm.entrypoints.openai.protocol.common import random_id
from vllm.entrypoints.openai.protocol.messages import (
    Block,
    BlockChange,
    BlockStart,
    BlockStop,
    Event,
    InputJsonDelta,
    MessageChange,
    MessageObject,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    SignatureDelta,
    StopDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from vllm.parsers.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallDelta


class MessageStream:
    """The blocks of one message: each is started, filled and stopped before the next.

    Owns `message` and keeps it current. Events refer to it: encode one before asking for the next.
    """

    def __init__(self, message: MessageObject) -> None:
        self.message = message
        self.call_index: int | None = None  # of the block that is open, if it is a call
        self.is_open = False
        self.arguments: list[str] = []

    def begin(self) -> Iterator[Event]:
        yield MessageStart(self.message)
        yield Ping()

    def push(self, deltas: Sequence[Delta]) -> Iterator[Event]:
        for delta in deltas:
            if isinstance(delta, ToolCallDelta):
                yield from self._push_call(delta)
            elif delta.text:
                yield from self._push_text(delta)

    def finish(
        self, reason: str | None, stop: int | str | None, usage: MessageUsage
    ) -> Iterator[Event]:
        """`reason` and `stop`: why the engine ended the sequence, and by which stop string."""
        if not self.message.content:
            yield from self._start(TextBlock())
        yield from self._stop()
        message = self.message
        message.usage = usage
        if reason == "length":
            message.stop_reason = "max_tokens"
        elif any(isinstance(block, ToolUseBlock) for block in message.content):
            message.stop_reason = "tool_use"
        elif isinstance(stop, str):
            message.stop_reason, message.stop_sequence = "stop_sequence", stop
        else:
            message.stop_reason = "end_turn"
        yield MessageChange(StopDelta(message.stop_reason, message.stop_sequence), usage)
        yield MessageStop()

    @property
    def index(self) -> int:
        return len(self.message.content) - 1

    def _push_text(self, delta: ContentDelta | ReasoningDelta) -> Iterator[Event]:
        is_text = isinstance(delta, ContentDelta)
        kind = TextBlock if is_text else ThinkingBlock
        if not self.is_open or not isinstance(self.message.content[-1], kind):
            yield from self._stop()
            yield from self._start(kind())
        block = self.message.content[-1]
        if isinstance(block, TextBlock):
            block.text += delta.text
            yield BlockChange(self.index, TextDelta(delta.text))
        else:
            assert isinstance(block, ThinkingBlock), block
            block.thinking += delta.text
            yield BlockChange(self.index, ThinkingDelta(delta.text))

    def _push_call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if self.call_index != delta.index:
            assert delta.name is not None, delta
            yield from self._stop()
            yield from self._start(ToolUseBlock(delta.id or f"toolu_{random_id()}", delta.name, {}))
            self.call_index = delta.index
        if delta.arguments:
            self.arguments.append(delta.arguments)
            yield BlockChange(self.index, InputJsonDelta(delta.arguments))

    def _start(self, block: Block) -> Iterator[Event]:
        self.message.content.append(block)
        self.is_open = True
        yield BlockStart(self.index, block)

    def _stop(self) -> Iterator[Event]:
        if not self.is_open:
            return
        block = self.message.content[-1]
        if isinstance(block, ToolUseBlock):
            block.input = _object("".join(self.arguments))
            self.arguments.clear()
        if isinstance(block, ThinkingBlock):
            # Clients wait for one; nothing is signed here.
            yield BlockChange(self.index, SignatureDelta(block.signature))
        self.is_open, self.call_index = False, None
        yield BlockStop(self.index)


def _object(text: str) -> object:
    """Arguments that were cut off are no JSON: then there are none."""
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return {}
