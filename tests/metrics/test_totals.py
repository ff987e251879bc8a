"""Statistics of several cores as those of one engine."""

from __future__ import annotations

import pytest

from vllm.messages.engine import EngineStats
from vllm.metrics.totals import COUNTERS, GAUGES, Totals, grown_from


def test_every_statistic_has_a_total() -> None:
    others = ("num_blocks", "kv_usage", "step_s")
    assert sorted((*COUNTERS, *GAUGES, *others)) == sorted(EngineStats.__struct_fields__)


def test_cores_are_summed_and_usage_is_weighted_by_blocks() -> None:
    totals = Totals([11, 31])
    assert totals.total == EngineStats(num_blocks=41)
    totals.add(EngineStats(2, 1, 0.5, 11, 7, prefix_hits=3, step_s=0.1, num_pending_tokens=5), 0)
    now = totals.add(EngineStats(3, 0, 0.1, 31, 1, prefix_hits=4, step_s=0.2), 1)
    assert now == EngineStats(
        num_running=5,
        num_waiting=1,
        kv_usage=pytest.approx(8 / 40),
        num_blocks=41,
        num_cached_blocks=8,
        prefix_hits=7,
        step_s=0.2,
        num_pending_tokens=5,
    )
    assert totals.add(EngineStats(num_blocks=11, step_s=0.3), 0).step_s == 0.3
    assert totals.total.num_running == 3


def test_the_totals_of_one_core_are_what_it_says() -> None:
    totals = Totals([11])
    engine = EngineStats(2, 1, 0.3, 11, 7, num_steps=3, step_s=0.1)
    assert totals.add(engine, 0) is engine


@pytest.mark.parametrize("num_cores", [1, 2])
def test_counters_never_go_down_when_cores_are_started_anew(num_cores: int) -> None:
    totals = Totals([11] * num_cores)
    counts = [
        totals.add(engine, 0)
        for engine in (
            EngineStats(num_running=4, num_blocks=11, kv_usage=0.5, num_steps=5, prefix_hits=50),
            EngineStats(),
            EngineStats(num_running=1, num_blocks=11, kv_usage=0.2, num_steps=1, prefix_hits=9),
            EngineStats(num_running=2, num_blocks=11, num_steps=2, prefix_hits=10),
            EngineStats(num_running=3, num_blocks=11, num_steps=1, prefix_hits=0),
        )
    ]
    assert [total.num_steps for total in counts] == [5, 5, 6, 7, 8]
    assert [total.prefix_hits for total in counts] == [50, 50, 59, 60, 60]
    assert [total.num_running for total in counts] == [4, 0, 1, 2, 3]
    assert [total.kv_usage for total in counts[:3:2]] == [0.5 / num_cores, 0.2 / num_cores]
    assert counts[-1].num_blocks == 10 * num_cores + 1


def test_a_counter_that_fell_tells_a_core_that_was_started_anew() -> None:
    last = EngineStats(num_running=5, num_steps=5, num_prompt_tokens=9)
    assert grown_from(last, EngineStats(num_steps=6, num_prompt_tokens=9)) is last
    assert grown_from(last, EngineStats(num_steps=6, num_prompt_tokens=2)) == EngineStats()
