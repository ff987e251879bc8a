import asyncio

import pytest

from vllm.messages.engine import EngineStats
from vllm.metrics.logging import LoggingStats
from vllm.metrics.stats import IterationStats


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_has_rates_since_the_last_line():
    clock = Clock()
    stats = LoggingStats(10, clock)
    for _ in range(2):
        stats.record(
            EngineStats(
                num_running=3, num_waiting=1, kv_usage=0.25, prefix_queries=8, prefix_hits=2
            ),
            IterationStats(num_prompt_tokens=50, num_generation_tokens=20),
        )
    clock.now_s = 10.0
    (line,) = stats.lines()
    assert line.startswith("Engine: prompt ")
    assert "prompt 10.0 tokens/s, generation 4.0 tokens/s" in line
    assert "running 3 requests, waiting 1" in line
    assert "KV cache usage 25.0%, prefix cache hit rate 25.0%" in line


def test_an_idle_engine_says_so_once():
    stats = LoggingStats(10, Clock())
    assert stats.lines() == []
    stats.record(EngineStats(num_running=1), IterationStats(num_generation_tokens=1))
    assert len(stats.lines()) == 1
    stats.record(EngineStats(), IterationStats())
    assert "running 0" in stats.lines()[0]
    assert stats.lines() == []


def test_every_engine_with_something_to_say_has_a_line_with_its_number():
    clock = Clock()
    stats = LoggingStats(10, clock, num_engines=3, first_engine=4)
    stats.record(EngineStats(num_running=2), IterationStats(num_generation_tokens=30), 0)
    stats.record(EngineStats(num_waiting=1), IterationStats(num_generation_tokens=50), 2)
    clock.now_s = 10.0
    first, second = stats.lines()
    assert first.startswith("Engine 004: prompt 0.0 tokens/s, generation 3.0 tokens/s, running 2")
    assert second.startswith("Engine 006: prompt 0.0 tokens/s, generation 5.0 tokens/s, running 0")
    stats.record(EngineStats(), IterationStats(), 0)
    assert [line[:10] for line in stats.lines()] == ["Engine 004", "Engine 006"]
    assert [line[:10] for line in stats.lines()] == ["Engine 006"]  # one waits


def test_hits_of_a_core_that_was_started_anew_are_its_own():
    stats = LoggingStats(10, Clock())
    stats.record(EngineStats(num_running=1, prefix_queries=80, prefix_hits=80), IterationStats())
    stats.lines()
    stats.record(EngineStats(num_running=1, prefix_queries=8, prefix_hits=2), IterationStats())
    assert "hit rate 25.0%" in stats.lines()[0]


@pytest.mark.asyncio
async def test_lines_stop_with_the_server():
    stats = LoggingStats(0.001)
    async with stats.running():
        await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
