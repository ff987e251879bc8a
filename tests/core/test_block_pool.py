from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm.core.kv_cache.block_pool import DUMMY_BLOCK, BlockPool, OutOfBlocks


def test_allocation_is_never_partial() -> None:
    pool = BlockPool(5)
    with pytest.raises(OutOfBlocks, match="5 blocks wanted, 4 free"):
        pool.allocate(5)
    assert pool.num_free == 4
    assert DUMMY_BLOCK not in pool.allocate(4)


def test_blocks_with_known_contents_are_reused_last_and_oldest_first() -> None:
    pool = BlockPool(5)
    a, b, c, d = pool.allocate(4)
    pool.publish(a, b"a")
    pool.publish(c, b"c")
    pool.release([c, a, d, b])
    assert pool.allocate(3) == [b, d, c]
    assert pool.lookup(b"c") is None
    assert pool.lookup(b"a") == a


def test_a_shared_free_block_comes_back_into_use() -> None:
    pool = BlockPool(3)
    (a,) = pool.allocate(1)
    pool.publish(a, b"a")
    pool.release([a])
    pool.share([a, a])
    pool.release([a])
    assert pool.num_free == 1
    pool.release([a])
    assert pool.num_free == 2
    pool.check()


def test_the_first_block_of_a_content_stays_the_known_one() -> None:
    pool = BlockPool(4)
    a, b = pool.allocate(2)
    pool.publish(a, b"x")
    pool.publish(b, b"x")
    assert pool.lookup(b"x") == a
    pool.check()


def test_groups_have_separate_contents() -> None:
    pool = BlockPool(4, num_groups=2)
    a, b = pool.allocate(2)
    pool.publish(a, b"x", group=0)
    pool.publish(b, b"x", group=1)
    assert (pool.lookup(b"x", 0), pool.lookup(b"x", 1)) == (a, b)


def test_the_prefix_cache_is_emptied_only_while_nothing_is_referenced() -> None:
    pool = BlockPool(4)
    (a,) = pool.allocate(1)
    pool.publish(a, b"a")
    assert not pool.forget_all()
    pool.release([a])
    assert pool.forget_all()
    assert pool.lookup(b"a") is None


def test_releasing_once_too_often_is_noticed() -> None:
    pool = BlockPool(3)
    (a,) = pool.allocate(1)
    pool.release([a])
    with pytest.raises(AssertionError, match="released once too often"):
        pool.release([a])


def test_check_notices_a_lost_block() -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    pool._references[1] = 0
    with pytest.raises(AssertionError, match="referenced"):
        pool.check()


class PoolMachine(RuleBasedStateMachine):
    """Random use against a model that remembers what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.held: list[int] = []
        self.contents: dict[int, bytes] = {}

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        assert not set(blocks) & set(self.held)
        self.held += blocks
        for block in blocks:
            self.contents.pop(block, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release([block])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), content=st.sampled_from([b"a", b"b", b"c"]))
    def publish(self, data: st.DataObject, content: bytes) -> None:
        block = data.draw(st.sampled_from(self.held))
        if content not in self.contents.values() and block not in self.contents:
            self.contents[block] = content
        self.pool.publish(block, content)

    @rule(content=st.sampled_from([b"a", b"b", b"c"]))
    def share_found(self, content: bytes) -> None:
        block = self.pool.lookup(content)
        if block is None:
            assert content not in self.contents.values()
        else:
            assert self.contents[block] == content
            self.pool.share([block])
            self.held.append(block)

    @invariant()
    def adds_up(self) -> None:
        self.pool.check()
        assert self.pool.num_free == 8 - len(set(self.held))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, deadline=None)
