"""Ids and numbers that are given out once."""

from __future__ import annotations

import uuid


def random_uuid() -> str:
    return uuid.uuid4().hex


class Counter:
    """Iterates over the integers from `start`."""

    def __init__(self, start: int = 0) -> None:
        self.counter = start

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> int:
        value = self.counter
        self.counter += 1
        return value

    def reset(self) -> None:
        self.counter = 0
