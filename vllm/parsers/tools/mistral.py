from __future__ import annotations

from vllm.parsers.call_object import SPACE, CallPiece, JsonSpan
from vllm.parsers.deltas import ContentDelta, Delta
from vllm.parsers.tools.base import TOOL_PARSERS, ObjectCalls

MARKER = "[TOOL_CALLS]"
ARGUMENTS = "[ARGS]"


@TOOL_PARSERS("mistral")
class MistralParser(ObjectCalls):
    """[TOOL_CALLS][{"name": …, "arguments": {…}}, …], and, from version 11 of the tokenizer on,
    [TOOL_CALLS]name[ARGS]{…} or [TOOL_CALLS]name{…}, once for each call."""

    begins = (MARKER,)

    def __init__(self) -> None:
        super().__init__()
        self._span: JsonSpan | None = None  # of the arguments of a call that is named first
        self._is_list: bool | None = None

    def _start_calls(self, marker: str) -> None:
        super()._start_calls(marker)
        self._is_list = None

    def _read_calls(self, found: list[Delta]) -> bool:
        if self._span is not None:
            return self._arguments(self._span, found)
        if self._is_list is None:
            start = self._buffer.lstrip(SPACE)
            if not start:
                return False
            self._is_list = start[0] in "[{" and not start.startswith(ARGUMENTS)
        return super()._read_calls(found) if self._is_list else self._named(found)

    def _named(self, found: list[Delta]) -> bool:
        name, brace, _ = self._buffer.partition("{")
        if not brace:
            return False
        clean = name.replace(ARGUMENTS, "").strip(SPACE)
        if not clean.replace("_", "").replace("-", "").replace(".", "").isalnum():
            found.append(ContentDelta(self._raw + name))
            self._buffer = self._buffer[len(name) :]
            self._raw, self._in_calls = "", False
            return True
        self._buffer = self._buffer[len(name) :]
        self._raw = ""
        self._span = JsonSpan()
        found.append(self._call(CallPiece(clean, "")))
        return True

    def _arguments(self, span: JsonSpan, found: list[Delta]) -> bool:
        for index, char in enumerate(self._buffer):
            if span.push(char):
                self._add(CallPiece(None, self._buffer[: index + 1]), found)
                self._buffer = self._buffer[index + 1 :]
                self._span, self._in_calls = None, False
                return True
        if self._buffer:
            self._add(CallPiece(None, self._buffer), found)
            self._buffer = ""
        return False

    def _end_calls(self, found: list[Delta]) -> None:
        if self._span is None:
            super()._end_calls(found)
