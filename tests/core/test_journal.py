"""News of a prefix cache: they add up to what `lookup` finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.conftest import BLOCK, Engine, layout
from vllm.core.kv_cache.block_pool import BlockPool
from vllm.core.kv_cache.journal import CacheJournal, NetNews
from vllm.core.kv_cache.manager import KVCacheManager
from vllm.messages.cache import BlockNeeds, KVCacheLayout
from vllm.messages.engine import NEWS_BYTES, CacheNews


def content(index: int) -> bytes:
    return index.to_bytes(16, "little")


def names(data: bytes) -> list[bytes]:
    return [data[i : i + NEWS_BYTES] for i in range(0, len(data), NEWS_BYTES)]


class Receiver:
    """What adds up news, and accepts changes only."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()

    def learn(self, news: CacheNews | None) -> None:
        if news is None:
            return
        added, removed = names(news.added), names(news.removed)
        assert added or removed
        assert len(set(added + removed)) == len(added) + len(removed)
        assert self.known.issuperset(removed) and self.known.isdisjoint(added)
        self.known -= set(removed)
        self.known |= set(added)


class JournalMachine(RuleBasedStateMachine):
    """A pool of two groups in random use; the second one has the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = CacheJournal(1)
        self.pool = BlockPool(7, num_groups=2, journal=self.journal)
        self.held: list[int] = []
        self.receiver = Receiver()

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        self.held += self.pool.allocate(min(count, self.pool.num_free))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release([block])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), index=st.integers(0, 4), group=st.sampled_from([0, 1, 1]))
    def publish(self, data: st.DataObject, index: int, group: int) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.publish(block, content(index), group)

    @rule(indices=st.lists(st.integers(0, 4)), group=st.sampled_from([0, 1, 1]))
    def forget(self, indices: list[int], group: int) -> None:
        self.pool.forget(map(content, indices), group)

    @rule()
    def forget_all(self) -> None:
        self.pool.release(self.held)
        self.held.clear()
        assert self.pool.forget_all()

    @rule()
    def take(self) -> None:
        self.receiver.learn(self.journal.take())
        found = {i for i in range(5) if self.pool.lookup(content(i), 1) is not None}
        assert self.receiver.known == {content(i)[:NEWS_BYTES] for i in found}
        assert self.journal.take() is None

    @invariant()
    def adds_up(self) -> None:
        self.pool.check()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=60, deadline=None)


@given(st.lists(st.tuples(st.lists(st.integers(0, 5)), st.booleans())))
def test_news_that_were_added_up_mean_the_same_as_one_after_another(
    changes: list[tuple[list[int], bool]],
) -> None:
    journal, late_news = CacheJournal(0), NetNews()
    often, seldom = Receiver(), Receiver()
    for indices, is_sent in changes:
        for index in indices:
            if content(index) in journal:
                del journal[content(index)]
            else:
                journal[content(index)] = 1
        news = journal.take()
        often.learn(news)
        if news is not None:
            late_news.note_all(news)
        if is_sent:
            seldom.learn(late_news.take())
            assert seldom.known == often.known
    assert often.known == {known[:NEWS_BYTES] for known in journal}


def test_the_journal_is_of_the_group_that_looks_back_at_everything() -> None:
    groups = layout(window=8, hybrid=True).groups
    assert [group.needs for group in groups] == [BlockNeeds(BLOCK), BlockNeeds(BLOCK, 8)]
    for ordered, full in ((groups, 0), (groups[::-1], 1)):
        kv = KVCacheManager(KVCacheLayout(16, ordered), True, 64, gives_news=True)
        block, other = kv.pool.allocate(2)
        kv.pool.publish(block, content(1), full)
        kv.pool.publish(other, content(2), 1 - full)
        assert kv.take_news() == CacheNews(content(1)[:NEWS_BYTES])


@pytest.mark.parametrize("changes", [{}, {"balances_by_cache": True, "caching": False}])
def test_a_scheduler_of_one_core_or_without_a_prefix_cache_has_no_journal(
    changes: dict[str, bool],
) -> None:
    caching = changes.pop("caching", True)
    engine = Engine(enable_prefix_caching=caching, **changes)
    engine.add("a", list(range(3 * BLOCK)))
    engine.run()
    assert (engine.scheduler.kv.pool.num_known > 0) is caching
    assert engine.scheduler.kv.take_news() is None


def test_news_of_an_engine_are_of_full_blocks_and_of_a_reset() -> None:
    engine = Engine(balances_by_cache=True)
    receiver = Receiver()
    engine.add("a", list(range(3 * BLOCK + 1)), max_tokens=2)
    engine.step()
    receiver.learn(engine.scheduler.kv.take_news())
    assert len(receiver.known) == 3
    engine.run()
    receiver.learn(engine.scheduler.kv.take_news())
    assert len(receiver.known) == engine.scheduler.kv.pool.num_known
    assert engine.scheduler.kv.pool.forget_all()
    receiver.learn(engine.scheduler.kv.take_news())
    assert not receiver.known
