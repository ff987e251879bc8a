"""The words of a recipe's key (csrc/recipes.h) as text."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

from hpu_emulator import _C

(
    OP, TENSOR, HOST_SCALAR, NUMBER, NONE, INT, BOOL, FLOAT, TEXT, INTS, LIST, OTHER, RESULTS,
    ALIVE, RANK,
) = range(-1000001, -1000001 + 15)  # fmt: skip
_NUMBERS = ("int", "float", "bool")


class Decoder:
    """Reads one key from its beginning to its end."""

    def __init__(self, words: array[int]) -> None:
        self._words = words
        self._at = 0

    def lines(self) -> Iterator[str]:
        """One line per op; the last says which results outlive the graph."""
        while self._at < len(self._words):
            word = self._next()
            if word == OP:
                yield self._op()
            elif word == ALIVE:
                alive = [place for place in range(self._next()) if self._next()]
                yield f"alive: {' '.join(f'%{place}' for place in alive) or 'nothing'}"
            elif word == TEXT:
                yield _C.text_of(self._next())
            else:
                raise AssertionError(f"word {word} at {self._at - 1} begins no op")

    def _next(self) -> int:
        self._at += 1
        return self._words[self._at - 1]

    def _take(self, count: int) -> list[int]:
        return [self._next() for _ in range(count)]

    def _op(self) -> str:
        name = _C.text_of(self._next())
        arguments = [self._value() for _ in range(self._next())]
        assert self._next() == RESULTS, self._at
        results = [self._value() for _ in range(self._next())]
        return f"{name}({', '.join(arguments)}) -> {', '.join(results)}"

    def _value(self) -> str:
        word = self._next()
        if word == TENSOR:
            return self._tensor()
        if word in (LIST, INTS):
            count = self._next()
            items = [self._value() if word == LIST else str(self._next()) for _ in range(count)]
            return f"[{', '.join(items)}]"
        if word == RANK:
            dtype, rank = self._take(2)
            return f"{_C.dtype_name(dtype)}[rank {rank}]"
        if word in (NONE, OTHER):
            return "None" if word == NONE else "?"
        value = self._next()
        if word == HOST_SCALAR:
            return f"host {_C.dtype_name(value)}"
        if word == NUMBER:
            return f"any {_NUMBERS[value]}"
        if word == TEXT:
            return repr(_C.text_of(value))
        if word == FLOAT:
            return str(struct.unpack("d", struct.pack("q", value))[0])
        return str(bool(value)) if word == BOOL else str(value)

    def _tensor(self) -> str:
        place, dtype, constant, storage, offset, rank = self._take(6)
        sizes, strides = self._take(rank), self._take(rank)
        text = f"%{place} {_C.dtype_name(dtype)}{sizes}"
        if not _is_contiguous(sizes, strides):
            text += f" strides {strides}"
        if storage:
            text += f" at {offset} of {storage} bytes"
        return f"{text} constant {constant:#x}" if constant else text


def _is_contiguous(sizes: list[int], strides: list[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return True
