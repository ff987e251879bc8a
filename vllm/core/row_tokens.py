"""RowTokens: the tokens of a result, by row."""

from __future__ import annotations

import numpy as np

from vllm.messages.step import Int32Array, StepResult


class RowTokens:
    """The tokens of a result by drawing row, whether each row has one or several."""

    def __init__(self, result: StepResult) -> None:
        self.token_ids = result.token_ids
        self._ends = np.cumsum(result.counts) if len(result.counts) else None

    def of_rows(self, first: int) -> list[list[int]]:
        """The tokens of each drawing row from row `first` on."""
        if self._ends is None:
            return [[token_id] for token_id in self.token_ids[first:].tolist()]
        return [self.of_row(index) for index in range(first, len(self._ends))]

    def of_row(self, index: int) -> list[int]:
        """The tokens of drawing row `index`."""
        if self._ends is None:
            return [int(self.token_ids[index])]
        begin, end = self.span(index)
        token_ids: list[int] = self.token_ids[begin:end].tolist()
        return token_ids

    def span(self, index: int) -> tuple[int, int]:
        """Where the tokens of drawing row `index` begin and end."""
        if self._ends is None:
            return index, index + 1
        return int(self._ends[index - 1]) if index else 0, int(self._ends[index])

    def first(self, num_rows: int) -> tuple[Int32Array, list[int]]:
        """First token of each of the first rows, and the rows that have more."""
        if self._ends is None:
            return self.token_ids[:num_rows], []
        begins = np.concatenate(([0], self._ends))[: num_rows + 1]
        return self.token_ids[begins[:-1]], np.flatnonzero(np.diff(begins) > 1).tolist()
