"""Regular expressions, read as sets of texts.

A dialect's doubts are decided for fewer texts: "." is no line terminator of JavaScript's, and
classes (\\d, \\w, \\s) hold ASCII only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

Ranges = tuple[tuple[int, int], ...]  # of code points, ascending, with gaps between them

_LAST: Final = 0x10FFFF
_MAX_DEPTH: Final = 100  # of groups: what reads and writes them recurses
_SURROGATES: Final = ((0xD800, 0xDFFF),)
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_REPEAT: Final = re.compile(r"\{([0-9]{1,6})(?:(,)([0-9]{0,6}))?\}")
_REPEATING: Final = frozenset("*+?{")
# Read as something else in some dialects.
_POSSESSIVE: Final = re.compile(r"(\\.)|[*+?}]\+", re.DOTALL)


class NotPlain(ValueError):
    """The pattern is none, or is more than is read here; the text says of what, in the plural.

    `elsewhere`: the other backends read it as Python does, or refuse it.
    """

    def __init__(self, what: str, elsewhere: bool = False) -> None:
        super().__init__(what)
        self.elsewhere = elsewhere


@dataclass(frozen=True, slots=True)
class Chars:
    """One character."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Options:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Edge:
    """The start of the text, or its end."""

    is_start: bool


Node = Chars | Sequence | Options | Repeat | Edge


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def others(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All characters but these."""
    found, start = [], 0
    for first, last in _joined([*ranges, *_SURROGATES]):
        if start < first:
            found.append((start, first - 1))
        start = last + 1
    if start <= _LAST:
        found.append((start, _LAST))
    return tuple(found)


def _without(ranges: Ranges, banned: Ranges) -> Ranges:
    return others([*others(ranges), *banned])


def _codes(characters: str) -> Ranges:
    return _joined((ord(char), ord(char)) for char in characters)


@lru_cache(maxsize=256)
def _one(char: str) -> Chars:
    return Chars(_codes(char))


_DIGITS: Final = ((0x30, 0x39),)
_WORD: Final = _joined([*_DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_SPACE: Final = _codes(" \t\n\r\f\v")
# All that some dialect takes for space.
_ANY_SPACE: Final = _joined(
    [
        *_SPACE,
        (0x1C, 0x1F),
        *_codes("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
        (0x2000, 0x200A),
    ]
)
_DOT: Final = others(_codes("\n\r\u2028\u2029"))
ANY: Final = Chars(others(()))
_CLASSES: Final = {
    "d": _DIGITS,
    "D": others(_DIGITS),
    "w": _WORD,
    "W": others(_WORD),
    "s": _SPACE,
    "S": others(_ANY_SPACE),
}
# In a set of others, which has fewer characters the more these have.
_WIDE_CLASSES: Final = {**_CLASSES, "s": _ANY_SPACE, "S": others(_SPACE)}
# Syntax in some dialect, in a set or outside.
SYNTAX: Final = frozenset("^$\\.*+?()[]{}|/-")


def read(pattern: str) -> Node:
    """Raises NotPlain, also for what is no pattern at all."""
    reader = _Reader(pattern)
    try:
        node = reader.pattern()
    except NotPlain as error:
        if error.elsewhere and any(found[1] is None for found in _POSSESSIVE.finditer(pattern)):
            raise NotPlain("possessive repetitions") from None
        raise
    if _depth(node) > _MAX_DEPTH:
        raise NotPlain(f"groups deeper than {_MAX_DEPTH}", elsewhere=True)
    return node


def _depth(node: Node) -> int:
    depth, level = 0, [node]
    while level and depth <= _MAX_DEPTH:
        depth, level = depth + 1, [part for one in level for part in parts_of(one)]
    return depth


class _Group:
    """One that is being read: its alternatives, the last of which is not complete."""

    def __init__(self) -> None:
        self._options: list[Node] = []
        self.parts: list[Node] = []

    def end_option(self) -> None:
        parts: list[Node] = []
        for part in self.parts:
            parts += part.parts if isinstance(part, Sequence) else (part,)
        self._options.append(parts[0] if len(parts) == 1 else Sequence(tuple(parts)))
        self.parts = []

    def node(self) -> Node:
        self.end_option()
        return self._options[0] if len(self._options) == 1 else Options(tuple(self._options))


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._text)

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        found = self._peek(text)
        self._at += len(text) if found else 0
        return found

    def _next(self) -> str:
        if self.at_end:
            raise NotPlain("an end in the middle")
        self._at += 1
        return self._text[self._at - 1]

    def pattern(self) -> Node:
        groups = [_Group()]
        while not self.at_end:
            # Most characters are none of these: tried first, as patterns may be long.
            if self._text[self._at] not in "(|)":
                groups[-1].parts.append(self._repeated(self._atom()))
            elif self._take("("):
                if self._take("?") and not self._take(":"):
                    self._name()
                groups.append(_Group())
            elif self._take("|"):
                groups[-1].end_option()
            else:
                self._at += 1
                node = groups.pop().node()
                if not groups:
                    raise NotPlain("parentheses that were not opened")
                groups[-1].parts.append(self._repeated(node))
        if len(groups) > 1:
            raise NotPlain("parentheses that are not closed")
        return groups[0].node()

    def _repeated(self, node: Node) -> Node:
        if self._text[self._at : self._at + 1] not in _REPEATING:
            return node
        bounds = self._bounds()
        if bounds is None:
            return node
        least, most = bounds
        if isinstance(node, Edge):
            raise NotPlain("repeated anchors")
        if most is not None and most < least:
            raise NotPlain("bounds of repetition in the wrong order")
        if self._take("+"):
            raise NotPlain("possessive repetitions")
        self._take("?")  # which of the texts is preferred does not matter
        if self._peek("*") or self._peek("+") or self._peek("?") or self._bounds() is not None:
            raise NotPlain("repeated repetitions")
        return Repeat(node, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = _REPEAT.match(self._text, self._at)
        if found is None:
            if self._peek("{,"):
                raise NotPlain("repetitions without a lower bound")  # in some dialects a text
            return None
        self._at = found.end()
        least = int(found[1])
        if not found[2]:
            return least, least
        return least, int(found[3]) if found[3] else None

    def _atom(self) -> Node:
        char = self._next()
        if char not in SYNTAX:
            return _one(char)
        if char == "[":
            return Chars(self._set())
        if char == "\\":
            return self._escaped()
        if char in "^$":
            return Edge(char == "^")
        if char == ".":
            return Chars(_DOT)
        if char in "*+?":
            raise NotPlain("repetitions of nothing")
        if char == "{" and (self._peek(",") or _REPEAT.match(self._text, self._at - 1)):
            raise NotPlain("repetitions of nothing, or without a lower bound")
        return _one(char)

    def _name(self) -> None:
        self._take("P")
        if not self._take("<") or self._peek("=") or self._peek("!"):
            raise NotPlain("lookarounds, flags or comments", elsewhere=True)
        while (char := self._next()) != ">":
            if not (char.isalnum() or char == "_"):
                raise NotPlain("names of groups that are no names")

    def _escaped(self) -> Node:
        char = self._next()
        if char in _CLASSES:
            return Chars(_CLASSES[char])
        if char in "AZz":
            return Edge(char == "A")
        if char in "bB":
            raise NotPlain("word boundaries", elsewhere=True)
        return _one(self._character(char))

    def _character(self, char: str) -> str:
        """What stands behind a backslash, as one character."""
        if char == "0" and not self.at_end and self._text[self._at].isdigit():
            raise NotPlain("octal numbers")
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in "xu":
            return self._numbered(2 if char == "x" else 4)
        if char.isalnum():
            raise NotPlain(f"\\{char}", elsewhere=char in "pP")
        return char

    def _numbered(self, digits: int) -> str:
        number = self._text[self._at : self._at + digits]
        if self._take("{"):
            number, _, _ = self._text[self._at : self._at + 8].partition("}")
            self._at += len(number) + 1
        else:
            self._at += digits
            if len(number) < digits:
                raise NotPlain("numbers of characters that are cut")
        if not re.fullmatch("[0-9A-Fa-f]{1,6}", number) or int(number, 16) > _LAST:
            raise NotPlain("numbers of characters that there are not")
        if 0xD800 <= int(number, 16) <= 0xDFFF:
            raise NotPlain("surrogates")
        return chr(int(number, 16))

    def _set(self) -> Ranges:
        negated = self._take("^")
        classes = _WIDE_CLASSES if negated else _CLASSES
        ranges: list[tuple[int, int]] = []
        if self._peek("]"):
            raise NotPlain("sets that begin with ]")  # dialects differ
        while not self._take("]"):
            first = self._member(classes)
            if not self._peek("-") or self._peek("-]"):
                ranges += first
                continue
            self._at += 1
            last = self._member(classes)
            (start, *_), (end, *_) = first, last
            if first != (start,) or last != (end,) or len({*start, *end}) > 2 or start > end:
                raise NotPlain("ranges that are none")
            ranges.append((start[0], end[0]))
        return others(ranges if negated else others(ranges))

    def _member(self, classes: Mapping[str, Ranges]) -> Ranges:
        char = self._next()
        if char == "[" and (self._peek(":") or self._peek(".") or self._peek("=")):
            raise NotPlain("classes of POSIX", elsewhere=True)
        if char != "\\":
            return _codes(char)
        char = self._next()
        if char == "b":
            return _codes("\b")
        return classes[char] if char in classes else _codes(self._character(char))


def whole(node: Node) -> Node:
    """Of whole texts, without anchors. Raises NotPlain where one is not at an end."""
    return _placed(node, True, True)


def found_in(node: Node) -> Node:
    """Of the texts in which a match is somewhere, without anchors. Raises NotPlain."""
    return whole(_open(_open(node, True), False))


def _open(node: Node, is_start: bool) -> Node:
    """With any text before it, or behind, where there is no anchor."""
    if isinstance(node, Edge) and node.is_start is is_start:
        return node
    if isinstance(node, Options):
        return Options(tuple(_open(part, is_start) for part in node.parts))
    if isinstance(node, Sequence) and node.parts:
        first, *others = node.parts if is_start else reversed(node.parts)
        return _sequence([_open(first, is_start), *others], is_start)
    return _sequence([Repeat(ANY, 0, None), node], is_start)


def _sequence(parts: list[Node], in_order: bool) -> Node:
    return Sequence(tuple(parts if in_order else reversed(parts)))


def parts_of(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Repeat):
        return (node.part,)
    return node.parts if isinstance(node, Sequence | Options) else ()


def _placed(node: Node, first: bool, last: bool) -> Node:
    """Without the anchors, where nothing comes before or after them."""
    if isinstance(node, Edge):
        if not (first if node.is_start else last):
            raise NotPlain("anchors that are not at an end")
        return Sequence(())
    if isinstance(node, Options):
        return Options(tuple(_placed(part, first, last) for part in node.parts))
    if isinstance(node, Sequence):
        parts = node.parts
        starts = next((i for i, p in enumerate(parts) if not _is_anchor(p)), len(parts))
        ends = next((i for i, p in enumerate(reversed(parts)) if not _is_anchor(p)), len(parts))
        ends = len(parts) - 1 - ends
        return Sequence(
            tuple(
                _placed(part, first and i <= starts, last and i >= ends)
                for i, part in enumerate(parts)
            )
        )
    if isinstance(node, Repeat):
        once = node.most == 1
        return Repeat(_placed(node.part, first and once, last and once), node.least, node.most)
    return node


def _is_anchor(node: Node) -> bool:
    return isinstance(node, Edge)


def without(banned: Ranges, node: Node, kept: bool = False) -> Node:
    """Of its texts those without these characters.

    Where there is no other character it is kept, or raises NotPlain. Without anchors.
    """
    if isinstance(node, Chars):
        ranges = _without(node.ranges, banned)
        if not ranges and node.ranges and not kept:
            raise NotPlain("characters that JSON escapes")
        return node if kept and (node == ANY or not ranges) else Chars(ranges)
    if isinstance(node, Sequence | Options):
        return type(node)(tuple(without(banned, part, kept) for part in node.parts))
    if isinstance(node, Repeat):
        return Repeat(without(banned, node.part, kept), node.least, node.most)
    return node


def texts(node: Node, most: int) -> set[str] | None:
    """All of a pattern without anchors, if there are no more than that."""
    if isinstance(node, Chars):
        if sum(last - first + 1 for first, last in node.ranges) > most:
            return None
        return {chr(code) for first, last in node.ranges for code in range(first, last + 1)}
    if isinstance(node, Options):
        found: set[str] = set()
        for part in node.parts:
            some = texts(part, most)
            if some is None or len(found := found | some) > most:
                return None
        return found
    if isinstance(node, Repeat):
        return _repeated_texts(node, most)
    return _joined_texts([texts(part, most) for part in parts_of(node)], most)


def _repeated_texts(node: Repeat, most: int) -> set[str] | None:
    part = texts(node.part, most)
    if part is not None and not part - {""}:
        return part if node.least else {""}
    if part is None or node.most is None or node.most > most:
        return None
    optional = [part | {""}] * (node.most - node.least)
    return _joined_texts([*[part] * node.least, *optional], most)


def _joined_texts(parts: list[set[str] | None], most: int) -> set[str] | None:
    found = {""}
    for part in parts:
        if part is None or len(found := {a + b for a in found for b in part}) > most:
            return None
    return found
