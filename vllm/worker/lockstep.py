"""The agreement of copies of a model whose ranks have experts for each other's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from vllm.device.agreement import AgreedTokens, Agreement, LaunchSize
from vllm.device.collectives import Collectives
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.device.planner import Planner
from vllm.messages.step import Int32Array

# Launches whose sizes fit into the first exchange: few steps have more.
_USUAL: Final = 4
_NUMBERS: Final = 5  # of a launch


class Lockstep(Agreement):
    """Every step, all ranks show each other how large their launches are, in one exchange.

    What each then runs is a function of what was shown, so nothing else has to be said.
    """

    def __init__(
        self, planner: Planner, ranks: Collectives, ranks_per_copy: int, tokens: AgreedTokens
    ) -> None:
        """`ranks`: of all copies, those of one after those of the other."""
        self._planner = planner
        self._ranks = ranks
        self._ranks_per_copy = ranks_per_copy
        self._tokens = tokens
        self._is_idle = False

    @property
    def is_idle(self) -> bool:
        return self._is_idle

    def joined(self, launches: Sequence[Launch]) -> Iterator[Launch]:
        sizes = self._shown(launches)
        self._is_idle = not any(sizes)
        try:
            for launch, num_tokens in self._planner.together(launches, sizes):
                self._tokens.count = num_tokens
                self._tokens.is_decode = launch.key.phase is Phase.DECODE
                yield launch
        finally:
            self._tokens.count, self._tokens.is_decode = 0, False

    def _shown(self, launches: Sequence[Launch]) -> list[list[LaunchSize]]:
        """The sizes of the launches of every copy."""
        shown = self._exchange(launches, _USUAL)
        most = int(shown[:, 0].max())
        if most > _USUAL:
            shown = self._exchange(launches, most)
        return [_sizes_of(values) for values in shown]

    def _exchange(self, launches: Sequence[Launch], room: int) -> Int32Array:
        own = np.zeros(1 + room * _NUMBERS, np.int32)
        own[0] = len(launches)
        for i, launch in enumerate(launches[:room]):
            key = launch.key
            first = 1 + i * _NUMBERS
            own[first : first + _NUMBERS] = (
                key.phase,
                key.rows,
                key.query_len,
                key.kv_blocks,
                launch.num_tokens,
            )
        # The ranks of a copy have the same.
        return self._ranks.show(own)[:: self._ranks_per_copy]


def _sizes_of(values: Int32Array) -> list[LaunchSize]:
    count, *numbers = values.tolist()
    found = []
    for i in range(0, count * _NUMBERS, _NUMBERS):
        phase, rows, query_len, kv_blocks, num_tokens = numbers[i : i + _NUMBERS]
        key = ShapeKey(Phase(phase), rows, query_len, kv_blocks)
        found.append(LaunchSize(key, num_tokens))
    return found
