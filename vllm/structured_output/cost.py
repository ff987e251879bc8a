"""What a form costs to compile, estimated from its text: compilation cannot be interrupted.

Every expression here takes time linear in the text: matching holds the interpreter lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from vllm.structured_output.structural_tag import read_tag
from vllm.structured_params import StructuredOutputsParams

# Items that may be left out, or be names of rules that allow that.
_OPTIONAL_IN_REGEX: Final = re.compile(r"[?*]|\{0|\(\||\|\||\|\)")
_OPTIONAL_IN_RULE: Final = re.compile(r'[?*]|\{0|""|[A-Za-z_][\w.-]*')
# What is not syntax: texts, sets of characters, comments. One that is not closed ends its line, so
# that none is tried twice.
_TEXT: Final = r'"(?:[^"\\\n]|\\[^\n]?)*(?:"|$)'
_LITERAL: Final = {
    "ebnf": re.compile(rf"{_TEXT}|\[(?:[^\]\\\n]|\\[^\n]?)*(?:\]|$)|#[^\n]*", re.MULTILINE),
    "lark": re.compile(rf"{_TEXT}|/(?:[^/\\\n]|\\[^\n]?)*(?:/|$)", re.MULTILINE),
}
_RULE: Final = re.compile(r"^[ \t]*[?!]?[\w.-]+[ \t]*(?:::=|:)", re.MULTILINE)
_LARK_RULE: Final = re.compile(r"^[ \t]*[?!]?\w[\w.]*[ \t]*:(?!:=)", re.MULTILINE)


def num_optional(params: StructuredOutputsParams) -> int:
    """Most optional parts in one sequence of the form: of a rule, a pattern or an object.

    Each may be followed by any of those behind it, so work grows with a power of their number.
    """
    if params.kind == "regex":
        return _in_regex(params.spec)
    if params.kind == "grammar":
        return _in_grammar(params.spec)
    if params.kind == "json":
        return max(_parts(json.loads(params.spec)), default=0)
    if params.kind == "structural_tag":
        return max(_parts(read_tag(params.spec)), default=0)
    return 0


def is_lark(grammar: str) -> bool:
    return "::=" not in grammar and bool(_LARK_RULE.search(grammar))


def _in_regex(pattern: str) -> int:
    return len(_OPTIONAL_IN_REGEX.findall(pattern))


def _in_grammar(grammar: str) -> int:
    literal = _LITERAL["lark" if is_lark(grammar) else "ebnf"]
    bodies = _RULE.split(literal.sub(_without_names, grammar))
    return max(len(_OPTIONAL_IN_RULE.findall(body)) for body in bodies)


def _without_names(literal: re.Match[str]) -> str:
    """What of a literal may be left out: an empty text, or parts of an expression of Lark."""
    text = literal[0]
    if text[0] == "/":
        return "?" * _in_regex(text)
    return '""' if text == '""' else " "


def _parts(schema: Any) -> Iterator[int]:
    """Of every pattern, grammar and object at any depth."""
    todo = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            todo += node.values()
            yield from _parts_of(node)


def _parts_of(node: dict[str, Any]) -> Iterator[int]:
    if isinstance(pattern := node.get("pattern"), str):
        yield _in_regex(pattern)
    if isinstance(grammar := node.get("grammar"), str):  # of a structural tag
        yield _in_grammar(grammar)
    if isinstance(patterns := node.get("patternProperties"), dict):
        yield from map(_in_regex, patterns)
    if isinstance(properties := node.get("properties"), dict):
        # An object costs what a pattern does with an eighth as many parts.
        yield len(properties) // 8
