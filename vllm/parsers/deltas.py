"""What a piece of generated text means for a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of one call: the first has its id and name, all may have more of its arguments."""

    index: int  # of the call in its message
    id: str | None
    name: str | None
    arguments: str  # JSON text, in pieces that concatenate


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


class MessageParser(Protocol):
    """A state machine over the text of one choice, fed in pieces of any size."""

    def push(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]:
        """What was held back, once the text has ended wherever it did."""
        ...
