"""Seats: which sequence has which slot of the engine core, and tokens nobody has asked for yet."""

from __future__ import annotations

from typing import Final, Generic, Protocol, TypeVar

import numpy as np

QUIET_TOKENS: Final = 128  # kept of one sequence before it has to take them


class Seated(Protocol):
    """What sits on a seat."""

    slot: int  # 0: none yet

    @property
    def is_quiet(self) -> bool:
        """Whether its user gets nothing before its end."""
        ...


T = TypeVar("T", bound=Seated)


class Seats(Generic[T]):
    """Sequences by slot. Tokens of quiet ones gather here: a step adds to all of them at once.

    Users of quiet sequences get nothing before the end.
    """

    def __init__(self) -> None:
        self.sequences: list[T | None] = []
        self.is_taken = np.zeros(0, np.bool_)
        self.is_quiet = np.zeros(0, np.bool_)
        self.last_token_s = np.zeros(0)
        self._tokens = np.zeros((0, QUIET_TOKENS), np.int32)
        self._num_tokens = np.zeros(0, np.int32)

    def put(self, slot: int, sequence: T | None, now_s: float) -> None:
        """Who has the slot from now on. Who had it must have taken its tokens."""
        if slot >= len(self.sequences):
            self._grow(slot)
        before = self.sequences[slot]
        if before is not None:
            before.slot = 0
        self.sequences[slot] = sequence
        self.is_taken[slot] = sequence is not None
        self.is_quiet[slot] = sequence is not None and sequence.is_quiet
        self.last_token_s[slot] = now_s
        self._num_tokens[slot] = 0
        if sequence is not None:
            sequence.slot = slot

    def gather(self, slots: np.ndarray, token_ids: np.ndarray) -> list[int]:
        """A token for each of these quiet slots; -> those that can hold no more."""
        ends = self._num_tokens[slots]
        self._tokens[slots, ends] = token_ids
        ends += 1
        self._num_tokens[slots] = ends
        full: list[int] = slots[ends == QUIET_TOKENS].tolist()
        return full

    def take(self, slot: int) -> list[int]:
        """The tokens that have gathered."""
        token_ids: list[int] = self._tokens[slot, : self._num_tokens[slot]].tolist()
        self._num_tokens[slot] = 0
        return token_ids

    def _grow(self, slot: int) -> None:
        more = max(len(self.sequences), slot + 1 - len(self.sequences), 64)
        self.sequences += [None] * more
        self.is_taken = np.pad(self.is_taken, (0, more))
        self.is_quiet = np.pad(self.is_quiet, (0, more))
        self.last_token_s = np.pad(self.last_token_s, (0, more))
        self._tokens = np.pad(self._tokens, ((0, more), (0, 0)))
        self._num_tokens = np.pad(self._num_tokens, (0, more))
