"""What parsers of tool calls share: text until a marker, then calls."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar

from vllm.parsers.call_object import SPACE, CallObject, CallPiece
from vllm.parsers.deltas import ContentDelta, Delta, ToolCallDelta
from vllm.parsers.markers import first_of, held_back
from vllm.parsers.registry import Registry

TOOL_PARSERS: Registry[type[ToolParser]] = Registry("--tool-call-parser", "vllm.parsers.tools")


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolParser:
    """Splits the text of one choice into content and calls.

    `push` takes text in pieces of any size. Subclasses say which markers begin calls and read what
    follows; a text that begins like a call and is none comes back as content.
    """

    begins: ClassVar[tuple[str, ...]] = ()
    # Whether calls are marked by tokens that text does not show unless asked to.
    needs_special_tokens: ClassVar[bool] = True
    # The functions of the request; None: not known. Where a marker says that there is a call, any
    # name is one: the client can tell the model that there is no such function.
    names: Collection[str] | None = None

    def __init__(self) -> None:
        self._buffer = ""
        self._num_calls = 0
        self._in_calls = False

    @staticmethod
    def new_id() -> str:
        """An id for a call, as the model's chat template takes it."""
        return new_call_id()

    def push(self, text: str) -> list[Delta]:
        self._buffer += text
        found: list[Delta] = []
        while self._advance(found):
            pass
        return found

    def finish(self) -> list[Delta]:
        found: list[Delta] = []
        if self._in_calls:
            self._end_calls(found)
        if self._buffer:
            found.append(ContentDelta(self._buffer))
            self._buffer = ""
        return found

    def _advance(self, found: list[Delta]) -> bool:
        """Take what can be taken from the buffer; whether there may be more to take."""
        if self._in_calls:
            return self._read_calls(found)
        marker = first_of(self._buffer, self.begins)
        if marker is None:
            self._content(len(self._buffer) - held_back(self._buffer, self.begins), found)
            return False
        position, text = marker
        self._content(position, found)
        self._buffer = self._buffer[len(text) :]
        self._in_calls = True
        self._start_calls(text)
        return True

    def _content(self, length: int, found: list[Delta]) -> None:
        """Pass on the first characters of the buffer as content."""
        if length:
            found.append(ContentDelta(self._buffer[:length]))
            self._buffer = self._buffer[length:]

    def _call(self, piece: CallPiece, call_id: str | None = None) -> ToolCallDelta:
        """`call_id`: the model's own, if it gave one."""
        if piece.name is not None:
            self._num_calls += 1
            call_id = call_id or self.new_id()
        return ToolCallDelta(self._num_calls - 1, call_id, piece.name, piece.arguments)

    def _start_calls(self, marker: str) -> None:
        """`marker` has been taken from the buffer."""
        raise NotImplementedError

    def _read_calls(self, found: list[Delta]) -> bool:
        """As `_advance`, after a marker; clears `_in_calls` where text goes on."""
        raise NotImplementedError

    def _end_calls(self, found: list[Delta]) -> None:
        """The text has ended inside of calls."""


class ObjectCalls(ToolParser):
    """Calls as JSON objects after a marker, one or a list of them, up to an end marker.

    `separators` may stand between objects. Without `end`, calls go on to the end of the text.
    """

    end: ClassVar[str] = ""
    separators: ClassVar[str] = SPACE + "[],;"

    def __init__(self) -> None:
        super().__init__()
        self._object: CallObject | None = None
        self._raw = ""  # since the marker, or since the last whole call

    def _start_calls(self, marker: str) -> None:
        self._raw = marker
        self._object = None

    def _read_calls(self, found: list[Delta]) -> bool:
        while self._buffer:
            if self._object is None:
                if not self._between(found):
                    return bool(self._buffer) and not self._in_calls
                continue
            if not self._inside(self._object, found):
                return True
        return False

    def _between(self, found: list[Delta]) -> bool:
        """Before, between or after objects; whether an object begins."""
        if self.end and self._buffer.startswith(self.end):
            self._buffer = self._buffer[len(self.end) :]
            self._in_calls = False
            if self._raw:
                self._raw += self.end
                self._give_back(found)
            return False
        if self.end and self.end.startswith(self._buffer):
            return False  # the end marker may be on its way
        char = self._buffer[0]
        if char == "{":
            self._object = self._new_object()
            return True
        if char in self.separators:
            self._raw += char if self._raw else ""
            self._buffer = self._buffer[1:]
            return bool(self._buffer)
        self._in_calls = False
        self._give_back(found)
        return False

    def _new_object(self) -> CallObject:
        return CallObject()

    def _inside(self, call: CallObject, found: list[Delta]) -> bool:
        """Read an object from the buffer; whether it is one, so far."""
        for index, char in enumerate(self._buffer):
            self._raw += char
            piece = call.push(char)
            if piece is not None:
                self._add(piece, found)
            if call.failed:
                self._buffer = self._buffer[index + 1 :]
                self._object = None
                self._in_calls = False
                self._give_back(found)
                return False
            if call.done:
                self._buffer = self._buffer[index + 1 :]
                self._object, self._raw = None, ""
                return True
        self._buffer = ""
        return True

    def _add(self, piece: CallPiece, found: list[Delta]) -> None:
        last = found[-1] if found else None
        if piece.name is None and isinstance(last, ToolCallDelta):
            found[-1] = replace(last, arguments=last.arguments + piece.arguments)
        else:
            found.append(self._call(piece))

    def _give_back(self, found: list[Delta]) -> None:
        """What was no call is content."""
        if self._raw:
            found.append(ContentDelta(self._raw))
            self._raw = ""

    def _end_calls(self, found: list[Delta]) -> None:
        if self._object is None or not self._object.started:
            self._give_back(found)
        if self.end.startswith(self._buffer):
            self._buffer = ""
