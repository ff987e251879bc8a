"""A call written as a JSON object, read while it is being written."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Final, NamedTuple

SPACE: Final = " \t\r\n"


class CallPiece(NamedTuple):
    name: str | None  # with the first piece of a call
    arguments: str


class JsonSpan:
    """Tells where a JSON value that starts at the first character ends."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    def push(self, char: str) -> bool:
        """Whether `char` closes an object, an array or a string at the outermost level."""
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self.in_string = False
                return self.depth == 0
            return False
        if char == '"':
            self.in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
            return self.depth == 0
        return False


class CallObject:
    """{"name": "f", "arguments": {…}} character by character.

    Arguments are passed on as they are written, once the name is known. `failed`: it is no such
    object, and nothing was passed on; `done`: it has ended.
    """

    def __init__(self, argument_keys: tuple[str, ...] = ("arguments", "parameters")) -> None:
        self.argument_keys = argument_keys
        self.name: str | None = None
        self.done = False
        self.failed = False
        self.started = False  # a piece was passed on
        self._steps = self._read()
        self._out: list[str] = []  # of the arguments, not passed on yet
        self._has_arguments = False
        next(self._steps)

    def push(self, char: str) -> CallPiece | None:
        """Raises nothing: see `failed`."""
        assert not self.done and not self.failed, "the object has ended"
        try:
            self._steps.send(char)
        except StopIteration:
            self.done = True
        except ValueError:
            if self.started:
                self._out.append(char)  # too late to take the call back: its arguments are wrong
            else:
                self.failed = True
                return None
        return self._piece()

    def _piece(self) -> CallPiece | None:
        if self.name is None:
            if self.done:
                self.failed = True
            return None
        if self.done and not self._has_arguments:
            self._out.append("{}")
        if not self._out and not self.done:
            return None
        piece = CallPiece(None if self.started else self.name, "".join(self._out))
        self._out.clear()
        if self.started and not piece.arguments:
            return None
        self.started = True
        return piece

    def _read(self) -> Generator[None, str, None]:
        """The grammar of the object as a coroutine: it is sent characters."""
        char = yield from self._after_space()
        _expect(char, "{")
        char = yield from self._after_space()
        while char != "}":
            _expect(char, '"')
            key = yield from self._string()
            _expect((yield from self._after_space()), ":")
            char = yield from self._after_space()
            char = yield from self._value(key, char)
            if char == ",":
                char = yield from self._after_space()
            elif char != "}":
                raise ValueError(char)

    def _value(self, key: str, char: str) -> Generator[None, str, str]:
        """One member's value from its first character; returns the character after it."""
        is_arguments = key in self.argument_keys and not self._has_arguments
        if char in "{[":
            self._has_arguments |= is_arguments
            span, written = JsonSpan(), self._out if is_arguments else []
            while True:
                written.append(char)
                if span.push(char):
                    return (yield from self._after_space())
                char = yield
        if char == '"':
            text = yield from self._string()
            if key == "name":
                self.name = text
            char = yield from self._after_space()
        else:
            text = ""
            while char not in ",}":
                text += char
                char = yield
            text = text.strip(SPACE)
        if is_arguments and text not in ("", "null"):  # JSON inside a string, or what is no object
            self._has_arguments = True
            self._out.append(text)
        return char

    def _string(self) -> Generator[None, str, str]:
        span, written = JsonSpan(), ['"']
        span.push('"')
        while True:
            char = yield
            written.append(char)
            if span.push(char):
                text: str = json.loads("".join(written), strict=False)
                return text

    def _after_space(self) -> Generator[None, str, str]:
        while True:
            char = yield
            if char not in SPACE:
                return char


def _expect(char: str, wanted: str) -> None:
    if char != wanted:
        raise ValueError(char)
