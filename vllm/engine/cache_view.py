"""CacheView: what a front end knows of the prefix cache of a core, and what it expects there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vllm.messages.engine import NEWS_BYTES, CacheNews

# NEWS_BYTES of a hash as a number, which takes less memory than bytes do.
BlockName = int


def block_names(hashes: Iterable[bytes]) -> list[BlockName]:
    return _names(b"".join([content[:NEWS_BYTES] for content in hashes]))


def _names(data: bytes) -> list[BlockName]:
    names: list[BlockName] = np.frombuffer(data, f"<u{NEWS_BYTES}").tolist()
    return names


class CacheView:
    """Blocks by name: known ones, of which the core has sent news, and expected ones.

    A block is expected while a request that computes it is on its way to its first token. Then it
    is known, or the request has failed. Names take no more memory than twice the blocks of the
    core: of more expected blocks the core would have lost the oldest before they are looked up.
    """

    def __init__(self, num_blocks: int) -> None:
        """`num_blocks`: of the core."""
        self.num_blocks = num_blocks
        self.clear()

    def clear(self) -> None:
        """The core has started anew."""
        self.known: set[BlockName] = set()
        self.expected: dict[BlockName, int] = {}  # and how many requests will compute it
        self._by_request: dict[str, Sequence[BlockName]] = {}  # the oldest first
        self._num_names = 0  # in all of these

    def learn(self, news: CacheNews) -> None:
        self.known.difference_update(_names(news.removed))
        self.known.update(_names(news.added))

    def expect(self, request_id: str, names: Sequence[BlockName]) -> None:
        """A request that will fill blocks of these names is sent to the core."""
        names = names[: self.num_blocks]
        if not names:
            return
        self._by_request[request_id] = names
        self._num_names += len(names)
        for name in names:
            self.expected[name] = self.expected.get(name, 0) + 1
        while self._num_names > self.num_blocks:
            self.settle(next(iter(self._by_request)))

    def settle(self, request_id: str) -> None:
        """A request has drawn its first token, or has ended. Others are ignored."""
        names = self._by_request.pop(request_id, ())
        self._num_names -= len(names)
        for name in names:
            left = self.expected[name] - 1
            if left:
                self.expected[name] = left
            else:
                del self.expected[name]

    def num_found(self, names: Sequence[BlockName], limit: int) -> int:
        """How many lead blocks, up to `limit`, the core has or will have."""
        known, expected = self.known, self.expected
        for i in range(min(limit, len(names))):
            if names[i] not in known and names[i] not in expected:
                return i
        return min(limit, len(names))
