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
    line = stats.line()
    assert "prompt 10.0 tokens/s, generation 4.0 tokens/s" in line
    assert "running 3 requests, waiting 1" in line
    assert "KV cache usage 25.0%, prefix cache hit rate 25.0%" in line


def test_an_idle_engine_says_so_once():
    stats = LoggingStats(10, Clock())
    assert stats.line() is None
    stats.record(EngineStats(num_running=1), IterationStats(num_generation_tokens=1))
    assert stats.line()
    stats.record(EngineStats(), IterationStats())
    assert "running 0" in stats.line()
    assert stats.line() is None


@pytest.mark.asyncio
async def test_lines_stop_with_the_server():
    stats = LoggingStats(0.001)
    async with stats.running():
        await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
