from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from vllm.errors import ConfigError
from vllm.platforms.hpu.bucketing.axes import Limits, default_axes
from vllm.platforms.hpu.bucketing.table import (
    Bucket,
    BucketTable,
    decode_buckets,
    decode_cost,
    prompt_buckets,
    prompt_cost,
)

A = Limits(256, 1, 8192, 32768, 128, 4127)
B = Limits(64, 1, 2048, 4096, 128, 2048)
STRATEGIES = ("exponential", "linear", "padding-aware")


def generated(strategy: str, limits: Limits) -> tuple[list[Bucket], list[Bucket]]:
    axes = default_axes(strategy, limits)
    return prompt_buckets(axes, strategy, limits), decode_buckets(axes, strategy, limits)


def table(strategy: str, limits: Limits) -> BucketTable:
    return BucketTable(*generated(strategy, limits), limits)


@pytest.mark.parametrize(
    ("limits", "strategy", "num_prompt", "num_decode"),
    [
        (A, "exponential", 120, 87),
        (A, "linear", 16321, 2390),
        (A, "padding-aware", 303, 266),
        (B, "exponential", 63, 43),
        (B, "linear", 512, 58),
        (B, "padding-aware", 110, 62),
    ],
)
def test_the_documented_numbers_of_buckets(
    limits: Limits, strategy: str, num_prompt: int, num_decode: int
) -> None:
    prompt, decode = generated(strategy, limits)
    assert (len(prompt), len(decode)) == (num_prompt, num_decode)


def test_contiguous_caches_have_every_pair_of_rows_and_blocks() -> None:
    limits = Limits(64, 1, 2048, 4096, 128, 2048, contiguous=True)
    assert len(generated("exponential", limits)[1]) == 96


def test_the_documented_lookups() -> None:
    a, b = table("exponential", A), table("exponential", B)
    assert a.find_prompt(1, 700, 5) == (1, 768, 8)
    assert a.find_prompt(1, 5000, 100) == (1, 5888, 100)
    assert a.find_decode(17, 300) == (24, 1, 512)
    assert a.find_decode(100, 2000) == (140, 1, 2560)
    assert b.find_decode(5, 37) == (8, 1, 64)
    assert b.find_prompt(1, 130, 0) == (1, 256, 0)
    assert b.find_prompt(1, 2048, 17).covers(Bucket(1, 2048, 17))


B_TABLES = {strategy: table(strategy, B) for strategy in STRATEGIES}


def limits_strategy() -> st.SearchStrategy[Limits]:
    return st.builds(
        Limits,
        max_num_seqs=st.integers(1, 300),
        max_prompt_rows=st.integers(1, 4),
        # Far beyond these the linear strategy has more buckets than may be asked for.
        max_num_batched_tokens=st.integers(16, 8000),
        max_model_len=st.integers(16, 16_000),
        block_size=st.sampled_from([16, 128]),
        num_blocks=st.integers(2, 5000),
        contiguous=st.booleans(),
    )


def legal_prompt(limits: Limits, rng: np.random.Generator) -> Bucket:
    most = min(limits.max_num_batched_tokens, limits.max_model_len)
    count = int(rng.integers(1, most + 1))
    start = int(rng.integers(0, limits.max_model_len - count + 1))
    return Bucket(1, count, -(-start // limits.block_size))


def legal_decode(limits: Limits, rng: np.random.Generator, cap: int) -> Bucket:
    """Every row writes to a block of its own; lists longer than the cap are cut by the planner."""
    rows = int(rng.integers(1, min(limits.max_num_seqs, limits.num_blocks, cap) + 1))
    if limits.contiguous:
        return Bucket(rows, 1, int(rng.integers(rows, limits.num_blocks + 1)))
    return Bucket(rows, 1, int(rng.integers(rows, min(cap, rows * limits.blocks_per_row) + 1)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=50, deadline=None)
@given(limits=limits_strategy(), seed=st.integers(0, 1000))
def test_every_legal_demand_has_a_prepared_bucket(strategy: str, limits: Limits, seed: int) -> None:
    try:
        some = table(strategy, limits)
    except ConfigError:  # too many, see below
        reject()
    rng = np.random.default_rng(seed)
    for _ in range(40):
        prompt = legal_prompt(limits, rng)
        found = some.find_prompt(*prompt)
        assert found.covers(prompt) and some.is_prepared(found), (prompt, found)
        decode = legal_decode(limits, rng, some.max_decode_blocks)
        found = some.find_decode(decode.rows, decode.blocks)
        assert found.covers(decode) and some.is_prepared(found), (decode, found)


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_prompts_that_share_a_launch_are_covered_up_to_the_tokens_of_a_step(rows: int) -> None:
    limits = Limits(16, 4, 2048, 4096, 128, 500)
    some = table("exponential", limits)
    for length in (2, 100, 400, 2048 // rows):
        assert some.is_prepared(some.find_prompt(rows, length, 0))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_cheapest_covering_bucket_is_taken(strategy: str) -> None:
    some = table(strategy, B)
    rng = np.random.default_rng(0)
    for _ in range(50):
        demand = legal_prompt(B, rng)
        cost = prompt_cost(some.find_prompt(*demand), B.block_size)
        assert cost == min(prompt_cost(b, B.block_size) for b in some.prompt if b.covers(demand))
        demand = legal_decode(B, rng, some.max_decode_blocks)
        cost = decode_cost(some.find_decode(demand.rows, demand.blocks))
        assert cost == min(decode_cost(b) for b in some.decode if b.covers(demand))


def test_more_demand_never_costs_less() -> None:
    some = table("exponential", A)
    rng = np.random.default_rng(1)
    for _ in range(200):
        demand = legal_prompt(A, rng)
        larger = Bucket(1, min(8192, demand.query_len + 1), demand.blocks)
        costs = [prompt_cost(some.find_prompt(*b), A.block_size) for b in (demand, larger)]
        assert costs[0] <= costs[1]


def test_demands_beyond_all_buckets_take_few_shapes_and_the_same_ones_again() -> None:
    some = table("exponential", B)
    shapes = {some.find_decode(60, blocks) for blocks in range(6000, 9000)}
    assert len(shapes) < 20
    for shape in shapes:
        assert some.find_decode(shape.rows, shape.blocks) == shape
        assert shape.rows in {bucket.rows for bucket in some.decode}


@settings(max_examples=50, deadline=None)
@given(
    limits=limits_strategy(),
    rows=st.integers(1, 10_000),
    query_len=st.integers(2, 100_000),
    blocks=st.integers(0, 1_000_000),
)
def test_what_a_demand_becomes_covers_it_and_becomes_itself(
    limits: Limits, rows: int, query_len: int, blocks: int
) -> None:
    some = table("exponential", limits)
    prompt = some.find_prompt(rows, query_len, blocks)
    assert prompt.covers(Bucket(rows, query_len, blocks)) and some.find_prompt(*prompt) == prompt
    decode = some.find_decode(rows, blocks)
    assert decode.covers(Bucket(rows, 1, blocks))
    assert some.find_decode(decode.rows, decode.blocks) == decode


@pytest.mark.parametrize("chosen", [[], [Bucket(3, 1, 7)], [Bucket(8, 1, 900), Bucket(64, 1, 70)]])
def test_however_few_buckets_are_given_every_demand_is_covered(chosen: list[Bucket]) -> None:
    some = BucketTable([], chosen, B)
    rng = np.random.default_rng(2)
    for _ in range(300):
        decode = legal_decode(B, rng, some.max_decode_blocks)
        assert some.is_prepared(some.find_decode(decode.rows, decode.blocks)), decode
        assert some.is_prepared(some.find_prompt(*legal_prompt(B, rng)))
    assert len(some.prompt) + len(some.decode) < 20


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_cheapest_bucket_costs_no_more_than_the_first_that_fits(data: st.DataObject) -> None:
    shapes = st.builds(Bucket, st.integers(1, 64), st.just(1), st.integers(1, 2048))
    some = BucketTable([], data.draw(st.lists(shapes, max_size=30)), B)
    for _ in range(10):
        demand = data.draw(shapes)
        first = next((bucket for bucket in some.decode if bucket.covers(demand)), None)
        if first is not None:
            assert decode_cost(some.find_decode(demand.rows, demand.blocks)) <= decode_cost(first)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 64), more=st.integers(0, 20), blocks=st.integers(1, 1500))
def test_a_larger_decode_never_costs_less(rows: int, more: int, blocks: int) -> None:
    for strategy in STRATEGIES:
        some = B_TABLES[strategy]
        small = some.find_decode(rows, blocks)
        large = some.find_decode(min(64, rows + more), blocks + more)
        assert decode_cost(small) <= decode_cost(large)


def test_prompts_with_context_are_not_prepared_together() -> None:
    some = table("exponential", Limits(16, 4, 2048, 4096, 128, 500))
    assert {bucket.blocks for bucket in some.prompt if bucket.rows > 1} == {0}


def test_numbers_of_buckets_that_nobody_waits_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompt buckets.*VLLM_BUCKETING_STRATEGY"):
        table("linear", Limits(64, 1, 131072, 131072, 128, 5000))


def test_tables_are_the_same_every_time() -> None:
    first, second = table("exponential", A), table("exponential", A)
    assert first.prompt == second.prompt and first.decode == second.decode


def test_maxima_are_prepared_exactly() -> None:
    limits = Limits(100, 1, 1000, 1000, 128, 300)
    for strategy in STRATEGIES:
        some = table(strategy, limits)
        assert max(bucket.rows for bucket in some.decode) == 100
        assert max(bucket.query_len for bucket in some.prompt) == 1000
