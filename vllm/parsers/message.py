"""The parser of a whole message: reasoning, then content and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vllm.parsers.call_object import CallObject, CallPiece
from vllm.parsers.deltas import (
    ContentDelta,
    Delta,
    MessageParser,
    ReasoningDelta,
    ToolCallDelta,
)
from vllm.parsers.tools.base import ObjectCalls, new_call_id


class PlainText:
    """All is content."""

    def push(self, text: str) -> list[Delta]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class RequiredCalls(ObjectCalls):
    """The text is a JSON list of calls, as the grammar of tool_choice "required" makes it.

    Nothing of it is content, wherever it is cut.
    """

    def __init__(self, new_id: Callable[[], str] = new_call_id) -> None:
        super().__init__()
        self.new_id = new_id  # type: ignore[method-assign]  # of the model's own notation
        self._in_calls = True
        self._start_calls("")

    def push(self, text: str) -> list[Delta]:
        return _calls_of(super().push(text))

    def finish(self) -> list[Delta]:
        return _calls_of(super().finish())

    def _new_object(self) -> CallObject:
        return CallObject(is_sure=True)

    def _end_calls(self, found: list[Delta]) -> None:
        piece = None if self._object is None else self._object.cut()
        if piece is not None:
            found.append(self._call(piece))


class NamedCall:
    """The text is the arguments of one function, as the grammar of a named tool_choice makes it."""

    def __init__(self, name: str, new_id: Callable[[], str] = new_call_id) -> None:
        self._name: str | None = name
        self._new_id = new_id

    def push(self, text: str) -> list[Delta]:
        if not text:
            return []
        name, self._name = self._name, None
        return [ToolCallDelta(0, self._new_id() if name else None, name, text)]

    def finish(self) -> list[Delta]:
        return []


class FirstCallOnly:
    """Leaves out every call but the first, for parallel_tool_calls=false."""

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Delta]:
        return _without_others(self._parser.push(text))

    def finish(self) -> list[Delta]:
        return _without_others(self._parser.finish())


class Message:
    """Reasoning, whose parser passes on what is content to the parser of calls."""

    def __init__(self, reasoning: MessageParser, calls: MessageParser) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self.has_calls = False

    def push(self, text: str) -> list[Delta]:
        return self._noted(self._passed_on(self._reasoning.push(text)))

    def finish(self) -> list[Delta]:
        found = self._passed_on(self._reasoning.finish())
        return self._noted([*found, *self._calls.finish()])

    def _passed_on(self, deltas: Sequence[Delta]) -> list[Delta]:
        found: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                found += self._calls.push(delta.text)
            else:
                found.append(delta)
        return found

    def _noted(self, deltas: list[Delta]) -> list[Delta]:
        self.has_calls |= any(isinstance(delta, ToolCallDelta) for delta in deltas)
        return deltas


class MessageText:
    """A message put together from its deltas."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self.calls: list[tuple[str, CallPiece]] = []  # id, and the whole call

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            if isinstance(delta, ContentDelta):
                self._content.append(delta.text)
            elif isinstance(delta, ReasoningDelta):
                self._reasoning.append(delta.text)
            elif delta.name is not None:
                self.calls.append((delta.id or "", CallPiece(delta.name, delta.arguments)))
            else:
                call_id, call = self.calls[delta.index]
                grown = call._replace(arguments=call.arguments + delta.arguments)
                self.calls[delta.index] = call_id, grown

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)


def _calls_of(deltas: list[Delta]) -> list[Delta]:
    return [delta for delta in deltas if isinstance(delta, ToolCallDelta)]


def _without_others(deltas: list[Delta]) -> list[Delta]:
    return [d for d in deltas if not (isinstance(d, ToolCallDelta) and d.index > 0)]
