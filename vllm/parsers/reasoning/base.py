"""What parsers of reasoning share: reasoning up to a marker, then content."""

from __future__ import annotations

from typing import ClassVar

from vllm.parsers.deltas import ContentDelta, Delta, ReasoningDelta
from vllm.parsers.markers import first_of, held_back
from vllm.parsers.registry import Registry

REASONING_PARSERS: Registry[type[ReasoningParser]] = Registry(
    "--reasoning-parser", "vllm.parsers.reasoning"
)


class ReasoningParser:
    """Splits the text of one choice into reasoning and content; reasoning comes once, first.

    `begun` is what the prompt has of the message already: a template, or a message that is to be
    continued, may have begun the reasoning, or ended it, or be cut within a marker.
    """

    starts: ClassVar[tuple[str, ...]]
    ends: ClassVar[tuple[str, ...]]
    # Whether a text that begins with neither marker is reasoning.
    assumes_reasoning: ClassVar[bool] = False

    def __init__(self, begun: str) -> None:
        self._begun = False  # whether it is known if there is reasoning
        is_open = self.is_open(begun)
        self._done = is_open is False
        self._in_reasoning = bool(is_open)
        self._buffer = self.cut_marker(begun)
        self._num_known = len(self._buffer)  # characters of it that the prompt has

    @classmethod
    def is_open(cls, begun: str) -> bool | None:
        """Whether reasoning goes on after `begun`; None: the model may begin with it."""
        start = max(map(begun.rfind, cls.starts), default=-1)
        end = max(map(begun.rfind, cls.ends))
        if start == end == -1:
            return True if cls.assumes_reasoning else None
        return start > end

    @classmethod
    def cut_marker(cls, begun: str) -> str:
        """The beginning of a marker that `begun` ends with, which what follows may complete."""
        is_open = cls.is_open(begun)
        markers = () if is_open is False else cls.ends if is_open else cls.starts
        return begun[len(begun) - held_back(begun, markers) :]

    def push(self, text: str) -> list[Delta]:
        if self._done:
            return [ContentDelta(text)] if text else []
        self._buffer += text
        if not self._begun and not self._begin():
            return []
        if not self._in_reasoning:
            self._done = True
            return self._content()
        end = first_of(self._buffer, self.ends)
        if end is None:
            return self._reasoning(len(self._buffer) - held_back(self._buffer, self.ends))
        position, marker = end
        found = self._reasoning(position)
        self._buffer = self._buffer[len(marker) :]
        self._num_known = 0
        self._done = True
        return found + self._content()

    def finish(self) -> list[Delta]:
        if self._done:
            return []
        self._done = True
        if self._in_reasoning:
            return self._reasoning(len(self._buffer))
        return self._content()

    def _begin(self) -> bool:
        """Take a start marker, if there is one; False while there may be one."""
        start = self._buffer.lstrip()
        if any(marker.startswith(start) and marker != start for marker in self.starts):
            return False
        self._begun = True
        for marker in sorted(self.starts, key=len, reverse=True):
            if start.startswith(marker):
                self._buffer = start.removeprefix(marker)
                self._num_known = 0
                self._in_reasoning = True
                break
        return True

    def _reasoning(self, length: int) -> list[Delta]:
        text = self._take(length)
        return [ReasoningDelta(text)] if text else []

    def _content(self) -> list[Delta]:
        text = self._take(len(self._buffer))
        return [ContentDelta(text)] if text else []

    def _take(self, length: int) -> str:
        text, self._buffer = self._buffer[self._num_known : length], self._buffer[length:]
        self._num_known = max(0, self._num_known - length)
        return text
