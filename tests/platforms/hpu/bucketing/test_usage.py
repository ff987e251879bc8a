from __future__ import annotations

import pytest

from vllm.platforms.hpu.bucketing.table import Bucket
from vllm.platforms.hpu.bucketing.usage import BucketUsage


def test_padding_is_the_share_of_what_was_computed_for_nobody() -> None:
    usage = BucketUsage()
    prompt, decode = Bucket(2, 128, 4), Bucket(8, 1, 16)
    usage.record(prompt, rows=1, longest=96, tokens=96, blocks=3)
    usage.record(prompt, rows=2, longest=128, tokens=160, blocks=5)
    usage.record(decode, rows=6, longest=1, tokens=6, blocks=12)
    first, second = usage.table(frozenset({prompt}))
    assert (first.phase, first.bucket, first.launches, first.is_prepared) == (
        "prompt",
        prompt,
        2,
        True,
    )
    assert first.row_padding == pytest.approx(1 / 4)
    assert first.token_padding == pytest.approx(1 / 2)
    assert first.block_padding == pytest.approx(1 / 2)
    assert (second.phase, second.is_prepared) == ("decode", False)
    assert second.row_padding == second.block_padding == pytest.approx(1 / 4)


def test_demands_are_counted_as_they_were_asked_for() -> None:
    usage = BucketUsage()
    for _ in range(3):
        usage.record(Bucket(1, 128, 4), rows=1, longest=96, tokens=96, blocks=3)
    assert usage.demands == {Bucket(1, 96, 3): 3}
