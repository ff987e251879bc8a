"""BlockPool: the blocks of the KV cache, who refers to them, and which contents are known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from vllm.core.kv_cache.journal import CacheJournal

BlockId = int
DUMMY_BLOCK: BlockId = 0


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; none was taken."""


class BlockPool:
    """Knows blocks, reference counts and content hashes; nothing about requests.

    A block is referenced (count > 0), or free. A free block may still hold known contents under a
    hash and group: `lookup` finds it until it is handed out again, oldest first. Block 0, the dummy
    row's, is in neither state and never leaves the pool.
    """

    def __init__(
        self, num_blocks: int, num_groups: int = 1, journal: CacheJournal | None = None
    ) -> None:
        """`num_blocks`: block 0 included; 0 for a model without a KV cache.

        `journal` takes note of what becomes known of its group, and what ceases to be.
        """
        assert num_blocks != 1, "a pool of the dummy block alone has none to hand out"
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._content: list[tuple[int, bytes] | None] = [None] * num_blocks  # group, hash
        self._known: list[dict[bytes, BlockId]] = [{} for _ in range(num_groups)]
        if journal is not None:
            self._known[journal.group] = journal
        # Insertion order is eviction order; an OrderedDict gives O(1) removal from the middle.
        self._free: OrderedDict[BlockId, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """Blocks that can be handed out: all but the dummy block."""
        return max(0, self.num_blocks - 1)

    @property
    def is_whole(self) -> bool:
        """Whether every block that was handed out has come back."""
        return len(self._free) == self.num_usable

    @property
    def num_known(self) -> int:
        """Blocks whose contents `lookup` can find, referenced or free."""
        return sum(len(known) for known in self._known)

    @property
    def usage(self) -> float:
        """Share of the blocks that requests refer to."""
        return 1.0 - self.num_free / self.num_usable if self.num_usable else 0.0

    def allocate(self, count: int) -> list[BlockId]:
        """Take `count` blocks with one reference each. Raises OutOfBlocks; never partial."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks wanted, {len(self._free)} free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            self._forget(block)
        return blocks

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Add a reference to each; free ones with known contents come back into use."""
        for block in blocks:
            if block == DUMMY_BLOCK:
                continue
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """Drop a reference to each, in the order in which they should be reused."""
        for block in blocks:
            if block == DUMMY_BLOCK:
                continue
            assert self._references[block] > 0, f"block {block} released once too often"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._content[block] is None:
                    # Nothing to lose: use it before any block that a later request could share.
                    self._free.move_to_end(block, last=False)

    def publish(self, block: BlockId, content: bytes, group: int = 0) -> None:
        """Make the contents of a referenced block findable. The first block of a content stays."""
        assert self._references[block] > 0, f"block {block} published while free"
        known = self._known[group]
        if content not in known and self._content[block] is None:
            known[content] = block
            self._content[block] = (group, content)

    def lookup(self, content: bytes, group: int = 0) -> BlockId | None:
        """The block with these contents, if there is one. Changes nothing."""
        return self._known[group].get(content)

    def is_free(self, block: BlockId) -> bool:
        return block in self._free

    def forget(self, contents: Iterable[bytes], group: int = 0) -> None:
        """Have none of these be found again; whoever refers to a block keeps it."""
        for content in contents:
            block = self.lookup(content, group)
            if block is not None:
                self._forget(block)

    def forget_all(self) -> bool:
        """Empty the prefix cache; False, and nothing done, while any block is referenced."""
        if not self.is_whole:
            return False
        for block in range(self.num_blocks):
            self._forget(block)
        return True

    def check(self) -> None:
        """Assert free + referenced == total and that every known content is where it says. O(n)."""
        referenced = [b for b in range(1, self.num_blocks) if self._references[b] > 0]
        assert len(referenced) + len(self._free) == self.num_usable, (
            f"{len(referenced)} referenced + {len(self._free)} free != {self.num_usable} blocks"
        )
        assert not self._free.keys() & set(referenced), "a block is both free and referenced"
        assert DUMMY_BLOCK not in self._free and not any(self._references[:1])
        for group, known in enumerate(self._known):
            for content, block in known.items():
                assert self._content[block] == (group, content), (
                    f"block {block} holds something else"
                )
        assert sum(c is not None for c in self._content) == self.num_known

    def _forget(self, block: BlockId) -> None:
        content = self._content[block]
        if content is not None:
            del self._known[content[0]][content[1]]
            self._content[block] = None
