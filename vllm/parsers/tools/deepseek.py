from __future__ import annotations

from typing import ClassVar

from vllm.parsers.call_object import SPACE, CallPiece, JsonSpan
from vllm.parsers.deltas import ContentDelta, Delta
from vllm.parsers.markers import first_of
from vllm.parsers.tools.base import TOOL_PARSERS, ToolParser

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"


@TOOL_PARSERS("deepseek_v31")
class DeepSeekV31Parser(ToolParser):
    """<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜> between markers of the list."""

    begins = (CALLS_BEGIN,)
    before_name: ClassVar[str] = CALL_BEGIN
    after_name: ClassVar[str] = SEPARATOR

    def __init__(self) -> None:
        super().__init__()
        self._span: JsonSpan | None = None
        self._name = ""
        self._is_passed_on = False  # the name, with the first of the arguments

    def _start_calls(self, marker: str) -> None:
        self._span = None

    def _read_calls(self, found: list[Delta]) -> bool:
        if self._span is not None:
            return self._arguments(self._span, found)
        marker = first_of(self._buffer, (self.before_name, CALLS_END))
        if marker is None:
            return False
        position, text = marker
        rest = self._buffer[position + len(text) :]
        if text == CALLS_END:
            self._buffer = rest
            self._in_calls = False
            return True
        name, after, rest = rest.partition(self.after_name)
        if not after:
            return False
        self._buffer = rest
        self._span = JsonSpan()
        self._name, self._is_passed_on = name, False
        return True

    def _arguments(self, span: JsonSpan, found: list[Delta]) -> bool:
        if span.depth == 0:
            self._buffer = self._buffer.lstrip(SPACE)
            if self._buffer and self._buffer[0] != "{":
                self._span = None
                if self._buffer[0] in "<`":  # no arguments at all
                    self._pass_on("{}", found)
                else:
                    self._give_up(found)
                return True
        for index, char in enumerate(self._buffer):
            if span.push(char):
                self._pass_on(self._buffer[: index + 1], found)
                self._buffer = self._buffer[index + 1 :]
                self._span = None
                return True
        if self._buffer:
            self._pass_on(self._buffer, found)
            self._buffer = ""
        return False

    def _pass_on(self, arguments: str, found: list[Delta]) -> None:
        name = None if self._is_passed_on else self._name.strip(SPACE)
        self._is_passed_on = True
        found.append(self._call(CallPiece(name, arguments)))

    def _give_up(self, found: list[Delta]) -> None:
        """Arguments that are no object: what has been read is content."""
        begin = "" if self._num_calls else CALLS_BEGIN
        found.append(ContentDelta(f"{begin}{self.before_name}{self._name}{self.after_name}"))
        self._in_calls = False

    def _end_calls(self, found: list[Delta]) -> None:
        if self._span is not None and not self._is_passed_on:
            self._pass_on("", found)
        if self._num_calls == 0:
            found.append(ContentDelta(CALLS_BEGIN))
        else:
            self._buffer = ""  # the rest of a marker


@TOOL_PARSERS("deepseek_v3")
class DeepSeekV3Parser(DeepSeekV31Parser):
    """As V3.1, with "function" before the name and the arguments in a fence of Markdown."""

    before_name = f"{CALL_BEGIN}function{SEPARATOR}"
    after_name = "\n```json\n"
