"""The manager of KV groups whose rules differ, and of none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.core.conftest import BLOCK, Engine, expected
from vllm.core.kv_cache.block_pool import DUMMY_BLOCK, BlockPool
from vllm.core.kv_cache.manager import KVCacheManager
from vllm.core.kv_cache.rules import GroupRule, rule_of
from vllm.core.request import Request
from vllm.messages.cache import (
    BlockNeeds,
    CrossAttention,
    FullAttention,
    KVCacheLayout,
    SlidingWindow,
    groups_by_needs,
)
from vllm.messages.engine import EngineRequest
from vllm.sampling_params import SamplingParams

ENCODER_TOKENS = 10  # of every request
ENCODER_BLOCKS = 3
WINDOW = 6
SIZES = (BLOCK, 1, 8, 8, 4)
FULL, SLIDING = FullAttention(*SIZES), SlidingWindow(*SIZES, window_tokens=WINDOW)
CROSS = CrossAttention(*SIZES, max_encoder_tokens=ENCODER_TOKENS)


class EncoderRule(GroupRule):
    """Blocks of an encoder's output: all are there from the first step on, and no more come."""

    follows_tokens = False

    def reach(self, request: Request, upto: int) -> int:
        return -(-ENCODER_TOKENS // self.block_size)

    def first_needed(self, position: int) -> int:
        return 0

    def most_held(self, reach: int, start: int, step_tokens: int) -> int:
        return reach

    def longest_match(self, pool: BlockPool, hashes: Sequence[bytes], limit: int) -> int:
        raise AssertionError("hashes of tokens do not name what an encoder made")


def make_rule(needs: BlockNeeds, index: int) -> GroupRule:
    return EncoderRule(index, needs) if needs.max_encoder_tokens else rule_of(needs, index)


def make_manager(
    num_blocks: int = 40, caching: bool = True, step_tokens: int = 64
) -> KVCacheManager:
    """Three groups: full, cross and sliding."""
    specs = {"full": FULL, "cross": CROSS, "sliding": SLIDING}
    layout = KVCacheLayout(num_blocks, groups_by_needs(specs))
    return KVCacheManager(layout, caching, step_tokens, make_rule)


def make_request(num_tokens: int, name: str = "a") -> Request:
    params = SamplingParams(max_tokens=64, seed=0)
    source = EngineRequest(name, list(range(num_tokens)), params, 0.0)
    return Request(source, (0.0,), frozenset(), 1000, most_draws=1)


def compute(kv: KVCacheManager, request: Request, count: int) -> list[tuple[int, int]]:
    """Compute tokens as a scheduler does; -> (group, column) of new blocks."""
    upto = request.num_computed + count
    missing = kv.missing(request, upto)
    deltas = kv.reserve(request, upto)
    assert deltas is not None and len(deltas) == missing
    kv.announce(request, upto)
    request.num_computed = upto
    kv.commit(request)
    kv.pool.check()
    return [(delta.group, delta.column) for delta in deltas]


def start(kv: KVCacheManager, request: Request) -> int:
    """-> tokens found in the cache."""
    kv.begin_step()
    match = kv.match(request)
    assert kv.fits(request, request.num_tokens, match)
    kv.start(request, match)
    return match.num_tokens


def test_a_group_that_does_not_follow_tokens_has_all_its_blocks_from_the_first_step_on() -> None:
    kv = make_manager()
    request = make_request(9)
    assert start(kv, request) == 0
    cross = [(1, column) for column in range(ENCODER_BLOCKS)]
    assert compute(kv, request, 4) == [(0, 0), *cross, (2, 0)]
    assert compute(kv, request, 5) == [(0, 1), (0, 2), (2, 1), (2, 2)]
    for token in range(7):
        request.tokens.append(token)
        new = compute(kv, request, 1)
        assert len(new) == (kv.blocks_per_new_block if request.num_computed % BLOCK == 1 else 0)
    assert DUMMY_BLOCK not in request.blocks[1], "the window of another group drops nothing here"
    assert DUMMY_BLOCK in request.blocks[2]
    kv.release(request)
    assert kv.pool.is_whole


def test_a_prefix_is_found_in_groups_that_follow_tokens_and_the_others_are_filled_again() -> None:
    kv = make_manager()
    first, second = make_request(4 * BLOCK + 1), make_request(4 * BLOCK + 1, "b")
    start(kv, first)
    compute(kv, first, first.num_tokens)
    num_free = kv.pool.num_free
    match = kv.match(second)
    assert match.num_tokens == 4 * BLOCK and match.blocks[1] == []
    assert kv.num_ready(match) == 0, "the step that fills them is being planned"
    assert start(kv, second) == 4 * BLOCK
    cross = [(1, column) for column in range(ENCODER_BLOCKS)]
    assert compute(kv, second, 1) == [(0, 4), *cross, (2, 4)]
    assert num_free - kv.pool.num_free == ENCODER_BLOCKS + 2
    assert not set(first.blocks[1]) & set(second.blocks[1])
    assert first.blocks[0][:4] == second.blocks[0][:4]


def test_what_was_retracted_is_not_found() -> None:
    kv = make_manager()
    request = make_request(4 * BLOCK + 1)
    start(kv, request)
    compute(kv, request, request.num_tokens)
    kv.retract(request)
    kv.release(request)
    assert start(kv, make_request(4 * BLOCK + 1, "b")) == 0


@pytest.mark.parametrize("caching", [True, False])
def test_admission_counts_the_blocks_of_every_rule(caching: bool) -> None:
    """17 tokens: 5 full and 3 cross blocks; of the window at most (6 + 4) / 4 and one more."""
    needed = 5 + ENCODER_BLOCKS + 4
    enough, too_few = (make_manager(1 + needed - less, caching, 4) for less in (0, 1))
    request = make_request(17)
    assert enough.fits(request, 17, enough.match(request))
    assert not too_few.fits(request, 17, too_few.match(request))
    start(enough, request)
    for count in (4, 4, 4, 4, 1):
        compute(enough, request, count)


def test_too_few_blocks_are_refused_and_none_is_taken() -> None:
    kv = make_manager(1 + ENCODER_BLOCKS + 1)
    request = make_request(1)
    kv.start(request, kv.match(request))
    assert kv.missing(request, 1) == ENCODER_BLOCKS + 2
    assert kv.reserve(request, 1) is None
    assert kv.pool.is_whole


def test_groups_that_do_not_follow_tokens_alone_have_no_prefixes() -> None:
    layout = KVCacheLayout(9, groups_by_needs({"cross": CROSS}))
    kv = KVCacheManager(layout, True, 64, make_rule)
    assert not kv.enable_prefix_caching and kv.blocks_per_new_block == 0
    request = make_request(9)
    start(kv, request)
    compute(kv, request, 9)
    kv.release(request)
    assert start(kv, make_request(9, "b")) == 0


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("caching", [True, False])
def test_without_a_cache_every_request_runs_and_nothing_is_found_again(
    depth: int, caching: bool
) -> None:
    engine = Engine(
        KVCacheLayout(0, ()), pipeline_depth=depth, enable_prefix_caching=caching, max_num_seqs=3
    )
    prompts = [list(range(n)) for n in (1, 5, 100, 100, 40)]
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt)
    engine.run()
    assert engine.outputs == {str(i): expected(p, 8) for i, p in enumerate(prompts)}
    assert engine.num_steady > 0
    stats = engine.scheduler.snapshot()
    assert (stats.num_preemptions, stats.prefix_hits, stats.kv_usage) == (0, 0, 0.0)
    assert sum(len(plan.blocks) for plan in engine.plans) == 0
    assert engine.scheduler.kv.pool.forget_all()


def test_a_pool_without_blocks_is_whole_and_unused() -> None:
    pool = BlockPool(0, num_groups=0)
    assert (pool.num_usable, pool.num_free, pool.usage) == (0, 0, 0.0)
    assert pool.is_whole and pool.allocate(0) == []
    pool.check()
