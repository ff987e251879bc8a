from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vllm.errors import ConfigError
from vllm.platforms.hpu.bucketing.axes import Limits, default_axes
from vllm.platforms.hpu.bucketing.demand import RecordedDemand, chosen_buckets
from vllm.platforms.hpu.bucketing.file import read_buckets
from vllm.platforms.hpu.bucketing.table import (
    Bucket,
    BucketTable,
    decode_buckets,
    decode_cost,
    prompt_buckets,
    prompt_cost,
)

LIMITS = Limits(64, 2, 2048, 4096, 128, 2048)


def table(limits: Limits = LIMITS) -> BucketTable:
    axes = default_axes("exponential", limits)
    return BucketTable(
        prompt_buckets(axes, "exponential", limits),
        decode_buckets(axes, "exponential", limits),
        limits,
    )


def some_demands(seed: int, number: int) -> dict[Bucket, int]:
    rng = np.random.default_rng(seed)
    found: dict[Bucket, int] = {}
    for _ in range(number):
        rows = min(64, 1 + int(rng.poisson(20)))
        decode = Bucket(rows, 1, rows * (1 + int(rng.poisson(5))))
        prompt = Bucket(1, int(rng.integers(2, 1000)), int(rng.integers(0, 4)))
        for demand in (decode, prompt):
            found[demand] = found.get(demand, 0) + 1
    return found


def cost(some: BucketTable, counts: Mapping[Bucket, int]) -> tuple[int, int]:
    """Of all prompts, of all decodes."""
    prompts = decodes = 0
    for (rows, query_len, blocks), count in counts.items():
        if query_len == 1:
            decodes += count * decode_cost(some.find_decode(rows, blocks))
        else:
            bucket = some.find_prompt(rows, query_len, blocks)
            prompts += count * prompt_cost(bucket, LIMITS.block_size)
    return prompts, decodes


@pytest.mark.parametrize("seed", range(3))
def test_chosen_buckets_are_no_more_and_cost_less_than_those_of_the_strategy(seed: int) -> None:
    counts, before = some_demands(seed, 400), table()
    prompt, decode = chosen_buckets(counts, before)
    after = BucketTable(prompt, decode, LIMITS)
    assert len(after.prompt) <= len(before.prompt) and len(after.decode) <= len(before.decode)
    for new, old in zip(cost(after, counts), cost(before, counts), strict=True):
        assert new < old


def test_the_choice_is_the_same_every_time() -> None:
    counts = some_demands(0, 300)
    backwards = dict(reversed(counts.items()))
    assert chosen_buckets(counts, table()) == chosen_buckets(backwards, table())


def test_what_was_recorded_is_read_back_as_buckets_that_serve_it(tmp_path: Path) -> None:
    path = tmp_path / "buckets.txt"
    recorded = RecordedDemand(path, table())
    demands = [(1, 700, 5), (2, 90, 0), (1, 2048, 0), (17, 1, 300), (64, 1, 2000), (3, 1, 3)]
    for demand in demands * 2:
        recorded.record(*demand)
    assert not path.exists()
    recorded.close()
    assert "12 recorded launches" in path.read_text()
    after = BucketTable(*read_buckets(path, LIMITS), LIMITS)
    for rows, query_len, blocks in demands:
        demand = Bucket(rows, query_len, blocks)
        if query_len == 1:
            found, wanted = after.find_decode(rows, blocks), decode_cost(demand)
            assert decode_cost(found) <= 1.05 * wanted
        else:
            found = after.find_prompt(rows, query_len, blocks)
            assert found.query_len - query_len < LIMITS.block_size
        assert found.covers(demand) and after.is_prepared(found)


def test_buckets_are_chosen_for_models_without_a_cache() -> None:
    limits = replace(LIMITS, num_blocks=0)
    bare = BucketTable((), (), limits)
    counts = {Bucket(5, 1, 0): 90, Bucket(1, 40, 0): 10}
    more = BucketTable(bare.prompt, [*bare.decode, Bucket(3, 1, 0)], limits)
    prompt, decode = chosen_buckets(counts, more)
    assert Bucket(5, 1, 0) in decode
    assert {bucket.blocks for bucket in (*prompt, *decode)} == {0}


def test_a_phase_without_demand_keeps_its_buckets() -> None:
    before = table()
    prompt, decode = chosen_buckets({Bucket(1, 100, 0): 5}, before)
    assert Bucket(1, 128, 0) in prompt and decode == list(before.decode)


def test_long_recordings_stay_small(tmp_path: Path) -> None:
    recorded = RecordedDemand(tmp_path / "buckets.txt", table())
    for blocks in range(1, 100_000, 7):
        recorded.record(1, 1, blocks)
    assert len(recorded.counts) < 300


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"VLLM_BUCKETING_TO_FILE=.*cannot be written"):
        RecordedDemand(tmp_path / "absent" / "buckets.txt", table())


def test_nothing_recorded_leaves_an_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "buckets.txt"
    path.write_text("(1, 128, 0)\n")
    RecordedDemand(path, table()).close()
    assert path.read_text() == "(1, 128, 0)\n"


def test_a_file_made_for_another_block_size_is_remarked_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "buckets.txt"
    recorded = RecordedDemand(path, table(Limits(8, 1, 512, 1024, 16, 500)))
    recorded.record(1, 100, 0)
    recorded.close()
    with caplog.at_level(logging.WARNING, "vllm"):
        read_buckets(path, LIMITS)
    assert any("made for --block-size 16" in record.message for record in caplog.records)
