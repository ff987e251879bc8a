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
        self._marker = ""  # comes back with what turns out to be no list of calls
        self._has_call = False  # in this list
        self._closed = False
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
        self._span = _CallSpan()

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
        end = self._span.end(text)
        if end is None:
            return False
        piece = _call_of(text[1:end])
        if piece is None:
            return self._give_up(found)
        found.append(self._call(piece))
        self._buffer, self._has_call = text[end:], True
        self._span = _CallSpan()
        return True

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
                elif char == self._quote:
                    self._quote = ""
            elif char in "'\"":
                self._quote = char
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


def _call_of(text: str) -> CallPiece | None:
    """None: it is something else."""
    try:
        node = ast.parse(text.strip(SPACE), mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        if any(word.arg is None for word in node.keywords):
            return None
        values = {str(word.arg): _value(word.value) for word in node.keywords}
        return CallPiece(
            ast.unparse(node.func), json.dumps(values, ensure_ascii=False, allow_nan=False)
        )
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
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
