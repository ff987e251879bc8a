"""A call written as in Python, f(a=1, b="x"), read with names that need not be Python's."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any, Final

from vllm.parsers.call_object import CallPiece

# Names of functions and parameters are those of JSON: keywords of Python, hyphens, dots.
NAME: Final = re.compile(r"[\w$@][\w$@.:/-]*")
_SPACE: Final = re.compile(r"\s*")
_ATOM: Final = re.compile(r"[-+]?[\w.]+(?:(?<=[eE])[-+]\d+)?")
_STRING: Final = re.compile(
    r"""([rRuU]?)(?:(\"{3}|'{3})((?:\\.|(?!\2).)*)\2|(["'])((?:\\.|(?!\4)[^\\])*)\4)""", re.DOTALL
)
_WORDS: Final = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}
# What may stand in a string here, and not in one of Python's that is quoted once.
_RAW: Final = {"\n": "\\n", "\r": "\\r", "\0": "\\x00"}
_ESCAPED_OR_RAW: Final = re.compile(r"\\.|[\n\r\0]", re.DOTALL)


def python_call(text: str, names: Collection[str] | None) -> CallPiece | None:
    """None: it is something else, or calls a function that is none of `names`."""
    name, parenthesis, _ = text.partition("(")
    name = name.strip()
    if not parenthesis or not (name in names if names is not None else NAME.fullmatch(name)):
        return None
    try:
        arguments = _Reader(text, text.index("(")).whole()
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        if not written.isascii() and any("\ud800" <= char <= "\udfff" for char in written):
            written = json.dumps(arguments)  # halves of characters have no other notation
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return CallPiece(name, written)


class _Reader:
    """Reads from the parenthesis on. Every method raises ValueError for what is no such thing."""

    def __init__(self, text: str, index: int) -> None:
        self._text = text
        self._index = index

    def whole(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        self._take("(")
        while not self._takes(")"):
            name = self._match(NAME)
            self._take("=")
            if name in arguments:
                raise ValueError(f"{name} comes twice")
            arguments[name] = self._value()
            self._separate(")")
        self._skip_space()
        if self._index < len(self._text):
            raise ValueError("text after the call")
        return arguments

    def _value(self) -> Any:
        char = self._peek()
        if char == "[":
            return self._items("[", "]")[0]
        if char == "(":
            items, is_tuple = self._items("(", ")")
            return items if is_tuple or not items else items[0]
        if char == "{":
            return self._members()
        if _STRING.match(self._text, self._index):
            return self._strings()
        return _atom(self._match(_ATOM))

    def _items(self, begin: str, end: str) -> tuple[list[Any], bool]:
        """The items, and whether there was a comma."""
        items: list[Any] = []
        has_comma = False
        self._take(begin)
        while not self._takes(end):
            items.append(self._value())
            has_comma |= self._separate(end)
        return items, has_comma

    def _members(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self._take("{")
        while not self._takes("}"):
            key = self._value()
            if isinstance(key, list | dict):
                raise ValueError(key)
            self._take(":")
            members[str(key)] = self._value()
            self._separate("}")
        return members

    def _strings(self) -> str:
        """One, or several in a row, which are one."""
        text = ""
        while self._peek() and (found := _STRING.match(self._text, self._index)):
            self._index = found.end()
            prefix, triple, long_body, quote, short_body = found.groups()
            body = long_body if triple else short_body
            if prefix in ("r", "R"):
                text += body
                continue
            body = _ESCAPED_OR_RAW.sub(_escaped, body)
            text += ast.literal_eval(f"{triple or quote}{body}{triple or quote}")
        return text

    def _separate(self, end: str) -> bool:
        """A comma, or nothing before the end."""
        if self._takes(","):
            return True
        if self._peek() != end:
            raise ValueError(self._peek())
        return False

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip_space()
        found = pattern.match(self._text, self._index)
        if found is None:
            raise ValueError(self._peek())
        self._index = found.end()
        return found[0]

    def _take(self, char: str) -> None:
        if not self._takes(char):
            raise ValueError(self._peek())

    def _takes(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._index += 1
        return True

    def _peek(self) -> str:
        """The next character that is no space; "" at the end."""
        self._skip_space()
        return self._text[self._index : self._index + 1]

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._index)
        assert found is not None, "nothing is a match, too"
        self._index = found.end()


def _escaped(found: re.Match[str]) -> str:
    """A raw character in its escape; one after a backslash, which continues a line, is left out."""
    text = found[0]
    if text[0] == "\\":
        return "" if text[1] in _RAW else text
    return _RAW[text]


def _atom(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    digits = text.lstrip("+-")
    if not digits[:1].isdigit() and not digits[:1] == ".":
        raise ValueError(text)  # a name, or a call
    if digits[:2].lower() in ("0x", "0o", "0b"):
        return int(text, 0)
    try:
        return int(text)
    except ValueError:
        return float(text)
