from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from vllm.parsers.call_object import SPACE
from vllm.parsers.deltas import ContentDelta, Delta
from vllm.parsers.python_call import NAME, python_call
from vllm.parsers.tools.base import TOOL_PARSERS, ToolParser

# Each piece of a text would look at all of a longer one again.
MAX_NAME_CHARS = 256
_OPEN, _CLOSE = "([{", ")]}"


@TOOL_PARSERS("pythonic")
class PythonicParser(ToolParser):
    """[f(a=1), g(b="x")]: a Python list of calls with keyword arguments, as the whole message.

    Llama 3.2, ToolACE and others. A call is passed on when its parenthesis closes, since arguments
    are translated to JSON. Without a marker, functions are those of the request.
    """

    needs_special_tokens = False
    ends: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._marker = ""  # comes back with what turns out to be no list of calls
        self._has_call = False  # in this list
        self._closed = False
        self._is_named = False  # the call that is being read
        self._span = _CallSpan()

    def _advance(self, found: list[Delta]) -> bool:
        if not self._begun:
            start = self._buffer.lstrip(SPACE)
            if not start:
                return False
            self._begun = True
            if start.startswith("["):
                self._in_calls = True
                self._start_calls("")
        return super()._advance(found)

    def _start_calls(self, marker: str) -> None:
        self._marker, self._has_call, self._closed = marker, False, False
        self._span, self._is_named = _CallSpan(), False

    def _read_calls(self, found: list[Delta]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if self._closed:
            return self._after_list(text)
        if not text:
            return False
        if self._has_call and text[0] == "]":
            self._buffer, self._closed = text[1:], True
            return True
        if text[0] != ("," if self._has_call else "["):
            return self._give_up(found)
        if not self._is_named:
            if not self._may_be_call(text[1:]):
                return self._give_up(found)
            self._is_named = "(" in text
        end = self._span.end(text)
        if end is None:
            return False
        piece = python_call(text[1:end], self._known_names())
        if piece is None:
            return self._give_up(found)
        found.append(self._call(piece))
        self._buffer, self._has_call = text[end:], True
        self._span, self._is_named = _CallSpan(), False
        return True

    def _known_names(self) -> Collection[str] | None:
        return None if self._marker else self.names

    def _may_be_call(self, text: str) -> bool:
        """Of the beginning of a text: what is none is content at once."""
        head, parenthesis, _ = text.partition("(")
        name, names = head.strip(), self._known_names()
        if names is None:
            if len(name) > MAX_NAME_CHARS:
                return False
            return NAME.fullmatch(name) is not None if name else not parenthesis
        if parenthesis:
            return name in names
        return any(known.startswith(head.lstrip()) or known == name for known in names)

    def _after_list(self, text: str) -> bool:
        end = next((marker for marker in self.ends if text.startswith(marker)), "")
        if not end and any(marker.startswith(text) for marker in self.ends):
            return False
        if end:
            self._buffer = text.removeprefix(end)
        self._in_calls = False
        return True

    def _give_up(self, found: list[Delta]) -> bool:
        self._in_calls = False
        if not self._has_call:
            self._buffer = self._marker + self._buffer
        found.append(ContentDelta(self._buffer))
        self._buffer = ""
        return False

    def _end_calls(self, found: list[Delta]) -> None:
        if self._closed or (self._has_call and not self._buffer.strip(SPACE + ",")):
            self._buffer = ""
        else:
            self._give_up(found)


@TOOL_PARSERS("llama4_pythonic")
class Llama4PythonicParser(PythonicParser):
    """As pythonic, between <|python_start|> and <|python_end|> or without them: Llama 4."""

    begins = ("<|python_start|>",)
    ends = ("<|python_end|>",)
    needs_special_tokens = True


class _CallSpan:
    """Finds where a call ends, without reading anything twice."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._index = 1  # after the bracket or comma before the call

    def end(self, text: str) -> int | None:
        """Index after the parenthesis that closes the call; None while it is open.

        `text` is what it was at the last call, and more.
        """
        while self._index < len(text):
            char = text[self._index]
            if self._quote:
                if char == "\\":
                    if self._index + 1 == len(text):
                        return None
                    self._index += 1
                elif self._quote.startswith(text[self._index : self._index + 3]) and (
                    len(text) < self._index + len(self._quote)
                ):
                    return None  # a part of three quotes
                elif text.startswith(self._quote, self._index):
                    self._index += len(self._quote) - 1
                    self._quote = ""
            elif char in "'\"":
                following = text[self._index : self._index + 3]
                if len(following) < 3 and set(following) == {char}:
                    return None  # one quote, an empty string, or three
                self._quote = char * 3 if following == char * 3 else char
                self._index += len(self._quote) - 1
            elif char in _OPEN:
                self._depth += 1
            elif char in _CLOSE:
                self._depth -= 1
                if self._depth <= 0:
                    return self._index + (self._depth == 0)
            elif char == "," and self._depth == 0:
                return self._index
            self._index += 1
        return None
