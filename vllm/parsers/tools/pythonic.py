from __future__ import annotations

import ast
import json
from typing import Any, ClassVar

from vllm.parsers.call_object import SPACE, CallPiece
from vllm.parsers.deltas import ContentDelta, Delta
from vllm.parsers.tools.base import TOOL_PARSERS, ToolParser

_OPEN, _CLOSE = "([{", ")]}"


@TOOL_PARSERS("pythonic")
class PythonicParser(ToolParser):
    """[f(a=1), g(b="x")]: a Python list of calls with keyword arguments, as the whole message.

    Llama 3.2, ToolACE and others. A call is passed on when its parenthesis closes, since arguments
    are translated to JSON.
    """

    needs_special_tokens = False
    ends: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    def _advance(self, found: list[Delta]) -> bool:
        if not self._begun:
            start = self._buffer.lstrip(SPACE)
            if not start or any(m.startswith(start) and m != start for m in self.begins):
                return False
            self._begun = True
            marker = next((m for m in self.begins if start.startswith(m)), "")
            start = start.removeprefix(marker).lstrip(SPACE) if marker else start
            self._in_calls = start.startswith("[") or (bool(marker) and not start)
            if self._in_calls and marker:
                self._buffer = start
        return super()._advance(found)

    def _start_calls(self, marker: str) -> None:
        pass

    def _read_calls(self, found: list[Delta]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if text and not text.startswith(("[", ",")):
            self._give_up(found)
            return True
        end = _end_of_call(text, 1)
        if end is None:
            return False
        pieces = _calls_of(text[1:end])
        if pieces is None or (not pieces and not self._num_calls):
            self._give_up(found)
            return True
        found.extend(self._call(piece) for piece in pieces)
        rest = text[end:].lstrip(SPACE)
        if rest.startswith("]"):
            self._buffer = rest[1:]
            for marker in self.ends:
                self._buffer = self._buffer.removeprefix(marker)
            self._in_calls = False
            return bool(self._buffer)
        self._buffer = rest
        return rest.startswith(",")

    def _give_up(self, found: list[Delta]) -> None:
        self._in_calls = False
        self._content(len(self._buffer), found)

    def _end_calls(self, found: list[Delta]) -> None:
        if self._num_calls:
            self._buffer = ""
        elif self._buffer:
            found.append(ContentDelta(self._buffer))
            self._buffer = ""


@TOOL_PARSERS("llama4_pythonic")
class Llama4PythonicParser(PythonicParser):
    """As pythonic, between <|python_start|> and <|python_end|> or without them: Llama 4."""

    begins = ("<|python_start|>",)
    ends = ("<|python_end|>",)
    needs_special_tokens = True


def _end_of_call(text: str, start: int) -> int | None:
    """Index after the parenthesis that closes the call at `start`; None while it is open."""
    depth, quote, index = 0, "", start
    while index < len(text):
        char = text[index]
        if quote:
            if char == "\\":
                index += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
            if depth <= 0:
                return index + (depth == 0)
        elif char == "," and depth == 0:
            return index
        index += 1
    return None


def _calls_of(text: str) -> list[CallPiece] | None:
    """The one call in `text`; none for an empty list; None if it is something else."""
    if not text.strip(SPACE):
        return []
    try:
        node = ast.parse(text.strip(SPACE), mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        name = ast.unparse(node.func)
        values = {str(word.arg): _value(word.value) for word in node.keywords}
        if None in (word.arg for word in node.keywords):
            return None
        return [CallPiece(name, json.dumps(values, ensure_ascii=False))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else ast.literal_eval(key) for key in node.keys]
        return {str(k): _value(v) for k, v in zip(keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    if isinstance(value, bytes | set | complex):
        raise ValueError(value)
    return value
