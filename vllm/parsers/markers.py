"""Finding markers in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable


def held_back(text: str, markers: Iterable[str]) -> int:
    """Length of the longest end of `text` that could begin one of `markers`."""
    return max((_overlap(text, marker) for marker in markers), default=0)


def _overlap(text: str, marker: str) -> int:
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def first_of(text: str, markers: Iterable[str]) -> tuple[int, str] | None:
    """Where the first marker is, and which; of several at one place the longest."""
    found = [(text.find(marker), -len(marker), marker) for marker in markers if marker in text]
    if not found:
        return None
    position, _, marker = min(found)
    return position, marker


def common_length(text: str, other: str) -> int:
    """Of the beginning that both have."""
    if text.startswith(other):
        return len(other)
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(text))
