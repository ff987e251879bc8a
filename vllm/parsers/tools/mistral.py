from __future__ import annotations

import random
import string

from vllm.parsers.call_object import SPACE, CallPiece, JsonSpan
from vllm.parsers.deltas import ContentDelta, Delta
from vllm.parsers.tools.base import TOOL_PARSERS, ObjectCalls

MARKER = "[TOOL_CALLS]"
CALL_ID = "[CALL_ID]"
ARGUMENTS = "[ARGS]"
# Templates refuse a conversation whose calls have other ids.
ID_CHARS = string.ascii_letters + string.digits
ID_LENGTH = 9


@TOOL_PARSERS("mistral")
class MistralParser(ObjectCalls):
    """[TOOL_CALLS][{"name": …, "arguments": {…}}, …], and, from version 11 of the tokenizer on,
    [TOOL_CALLS]name[ARGS]{…}, with [CALL_ID]id before [ARGS] or without [ARGS], once for each."""

    begins = (MARKER,)

    def __init__(self) -> None:
        super().__init__()
        self._span: JsonSpan | None = None  # of the arguments of a call that is named first
        self._is_list: bool | None = None

    @staticmethod
    def new_id() -> str:
        return "".join(random.choices(ID_CHARS, k=ID_LENGTH))

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
        clean, _, call_id = (
            part.strip(SPACE) for part in name.replace(ARGUMENTS, "").partition(CALL_ID)
        )
        if not clean.replace("_", "").replace("-", "").replace(".", "").isalnum():
            found.append(ContentDelta(self._raw + name))
            self._buffer = self._buffer[len(name) :]
            self._raw, self._in_calls = "", False
            return True
        self._buffer = self._buffer[len(name) :]
        self._raw = ""
        self._span = JsonSpan()
        is_id = len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum()
        found.append(self._call(CallPiece(clean, ""), call_id if is_id else None))
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
