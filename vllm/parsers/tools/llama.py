from __future__ import annotations

from vllm.parsers.call_object import SPACE, CallObject
from vllm.parsers.deltas import Delta
from vllm.parsers.tools.base import TOOL_PARSERS, ObjectCalls


@TOOL_PARSERS("llama3_json", "llama4_json")
class LlamaJsonParser(ObjectCalls):
    """{"name": …, "parameters": {…}}; {…}: Llama 3.1 and later, as the whole of a message.

    A brace that does not begin the message, or follow <|python_tag|>, is text. Without that marker,
    so is an object that names no function of the request, or has no object of arguments.
    """

    begins = ("<|python_tag|>",)

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._is_marked = True

    def _start_calls(self, marker: str) -> None:
        super()._start_calls(marker)
        self._is_marked = bool(marker)

    def _new_object(self) -> CallObject:
        return CallObject(self.names, self._is_marked)

    def _advance(self, found: list[Delta]) -> bool:
        if not self._begun:
            start = self._buffer.lstrip(SPACE)
            if not start:
                return False
            self._begun = True
            if start.startswith("{"):
                self._in_calls = True
                self._start_calls("")
                return True
        return super()._advance(found)
