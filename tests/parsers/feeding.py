"""Feeding a parser in pieces, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vllm.parsers.deltas import Delta, MessageParser, ToolCallDelta
from vllm.parsers.message import MessageText


class Parsed(NamedTuple):
    reasoning: str
    content: str
    calls: list[tuple[str, str]]  # name, arguments


def fed(parser: MessageParser, pieces: Iterable[str]) -> Parsed:
    """Checks on the way that every call begins with its name and id, and stays in order."""
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    deltas += parser.finish()
    message, num_calls = MessageText(), 0
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            assert (delta.id is None) == (delta.name is None), delta
            num_calls += delta.name is not None
            assert delta.index == num_calls - 1, deltas
    message.add(deltas)
    calls = [(call.name or "", call.arguments) for _, call in message.calls]
    return Parsed(message.reasoning, message.content, calls)


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
