"""Patterns written so that each library reads in them what Python does.

Libraries differ in what they make of a line break under ".", of an anchor that is not at an end, or
of "\\0". What is written here uses none of that: characters, ranges, groups, "|" and repetitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from vllm.structured_output.pattern import (
    ANY,
    SYNTAX,
    Chars,
    Node,
    NotPlain,
    Options,
    Ranges,
    Repeat,
    Sequence,
    found_in,
    read,
    whole,
    without,
)

# What JSON wants escaped in a string.
ESCAPED: Final[Ranges] = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a library wants a character, inside of sets and outside, any character, and groups."""

    char: Callable[[int], str]
    any_char: str
    group: str


def _for_xgrammar(code: int) -> str:
    char = chr(code)
    if code < 0x20 or code == 0x7F:
        return f"\\u{code:04x}"  # of \x it takes more than two digits
    return "\\" + char if char in SYNTAX else char


def _is_alnum(code: int) -> bool:
    return code < 0x80 and chr(code).isalnum()


def _for_rust(code: int) -> str:
    return chr(code) if _is_alnum(code) or code == 0x20 else f"\\x{{{code:x}}}"


XGRAMMAR: Final = Dialect(_for_xgrammar, ".", "(")
RUST: Final = Dialect(_for_rust, "(?s:.)", "(?:")


def write(node: Node, dialect: Dialect) -> str:
    """A pattern without anchors. Raises NotPlain."""
    if isinstance(node, Chars):
        return _set(node.ranges, dialect)
    if isinstance(node, Sequence):
        return "".join(_grouped(part, dialect, Options) for part in node.parts)
    if isinstance(node, Options):
        return "|".join(write(part, dialect) for part in node.parts)
    assert isinstance(node, Repeat), node
    if node.most == 0:
        return ""
    return _grouped(node.part, dialect, Options, Sequence, Repeat) + _times(node)


def _grouped(node: Node, dialect: Dialect, *kinds: type[Node]) -> str:
    text = write(node, dialect)
    return f"{dialect.group}{text})" if isinstance(node, kinds) else text


def _times(node: Repeat) -> str:
    usual = {(0, None): "*", (1, None): "+", (0, 1): "?", (1, 1): ""}
    if (node.least, node.most) in usual:
        return usual[node.least, node.most]
    if node.least == node.most:
        return f"{{{node.least}}}"
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


@lru_cache(maxsize=256)
def _set(ranges: Ranges, dialect: Dialect) -> str:
    if not ranges:
        raise NotPlain("sets without characters")
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return dialect.char(ranges[0][0])
    if ranges == ANY.ranges:
        return dialect.any_char
    items = [
        dialect.char(first) + (f"-{dialect.char(last)}" if last > first else "")
        # A digit or a letter behind the number of a character is taken for a part of that.
        for first, last in sorted(ranges, key=lambda one: not _is_alnum(one[0]))
    ]
    return f"[{''.join(items)}]"


@lru_cache(maxsize=64)
def text_for(dialect: Dialect, pattern: str) -> str:
    """Of whole texts. Raises NotPlain."""
    return write(whole(read(pattern)), dialect)


@lru_cache(maxsize=64)
def string_for_xgrammar(pattern: str) -> str:
    """Of strings in JSON. Raises NotPlain.

    xgrammar takes what is found in a string for all of it, and writes no escapes: so the string
    needs none, and meets the pattern.
    """
    node = without(ESCAPED, whole(read(pattern)))
    return f"^({write(node, XGRAMMAR)})$"


@lru_cache(maxsize=64)
def string_for_guidance(pattern: str) -> str:
    """Of strings in JSON. Raises NotPlain.

    llguidance 1.9.1 lets a quotation mark or a backslash come escaped, though a set leaves it out,
    if the set has every control character: so no set has NUL beside others.
    """
    node = without(((0, 0),), found_in(read(pattern)), kept=True)
    return f"^(?:{write(node, RUST)})$"
