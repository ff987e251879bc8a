"""A call written as a JSON object, read while it is being written."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator
from typing import Final, NamedTuple

SPACE: Final = " \t\r\n"
ARGUMENT_KEYS: Final = ("arguments", "parameters")


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

    Arguments are an object, or a string that holds one; without them they are empty. Where no
    marker says that there is a call, they must be there, and the name be one of `names`, if these
    are known. Where a grammar does, the arguments are any value.
    """

    def __init__(
        self, names: Collection[str] | None = None, is_marked: bool = True, is_sure: bool = False
    ) -> None:
        self.name: str | None = None
        self.done = False
        self.failed = False
        self.started = False  # a piece was passed on
        self._names = None if is_marked else names
        self._is_marked = is_marked
        self._is_sure = is_sure
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
        except (ValueError, RecursionError):
            if self.started:
                self._out.append(char)  # too late to take the call back: its arguments are wrong
            else:
                self.failed = True
                return None
        return self._piece()

    def cut(self) -> CallPiece | None:
        """What there is of a call that ends here, if nothing was passed on yet."""
        if self.name is None or self.started:
            return None
        self.started = True
        return CallPiece(self.name, "".join(self._out))

    def _piece(self) -> CallPiece | None:
        if self.done and not self._has_arguments and not self._is_marked and not self.started:
            self.failed = True
            return None
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
        is_arguments = key in ARGUMENT_KEYS and not self._has_arguments
        if char in "{[":
            if is_arguments and char == "[" and not self._is_sure:
                raise ValueError(char)
            self._has_arguments |= is_arguments
            span, written = JsonSpan(), self._out if is_arguments else []
            while True:
                written.append(char)
                if span.push(char):
                    return (yield from self._after_space())
                char = yield
        if char == '"':
            raw = yield from self._raw_string()
            if key == "name":
                self._take_name(_text_of(raw))
        else:
            raw = ""
            while char not in ",}":
                raw += char
                char = yield
            raw = raw.strip(SPACE)
        if is_arguments:
            self._take_arguments(raw)
        return (yield from self._after_space()) if raw[:1] == '"' else char

    def _take_name(self, name: str) -> None:
        if self._names is not None and name not in self._names:
            raise ValueError(name)
        self.name = name

    def _take_arguments(self, raw: str) -> None:
        """Of a value that is neither an object nor a list."""
        if self._is_sure:
            self._has_arguments = True
            self._out.append(raw)
        elif raw not in ("", "null", '""'):
            text = _text_of(raw)
            if not isinstance(text, str) or not isinstance(json.loads(text), dict):
                raise ValueError(raw)
            self._has_arguments = True
            self._out.append(text)

    def _string(self) -> Generator[None, str, str]:
        return _text_of((yield from self._raw_string()))

    def _raw_string(self) -> Generator[None, str, str]:
        """Up to its end, quotation marks included; the first has been read."""
        span, written = JsonSpan(), ['"']
        span.push('"')
        while True:
            char = yield
            written.append(char)
            if span.push(char):
                return "".join(written)

    def _after_space(self) -> Generator[None, str, str]:
        while True:
            char = yield
            if char not in SPACE:
                return char


def _expect(char: str, wanted: str) -> None:
    if char != wanted:
        raise ValueError(char)


def _text_of(raw: str) -> str:
    text: str = json.loads(raw, strict=False)
    return text
