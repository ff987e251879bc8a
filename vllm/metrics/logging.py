"""One line of statistics at intervals, while there is something to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from vllm.logger import init_logger
from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats

logger = init_logger(__name__)


class LoggingStats:
    """A StatLogger that logs rates since its last line, and one line when the engine goes idle."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = interval_s
        self.clock = clock
        self.engine = EngineStats()
        self.last_line = EngineStats()  # the counters as of the last line
        self.last_line_at_s = clock()
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.was_busy = False

    def record(self, engine: EngineStats, iteration: IterationStats) -> None:
        self.engine = engine
        self.num_prompt_tokens += iteration.num_prompt_tokens
        self.num_generation_tokens += iteration.num_generation_tokens

    def line(self) -> str | None:
        """The statistics since the last call; None when the engine was and is idle."""
        now_s = self.clock()
        elapsed_s = max(now_s - self.last_line_at_s, 1e-9)
        tokens = (self.num_prompt_tokens, self.num_generation_tokens)
        queries = self.engine.prefix_queries - self.last_line.prefix_queries
        hits = self.engine.prefix_hits - self.last_line.prefix_hits
        is_busy = any(tokens) or self.engine.num_running > 0 or self.engine.num_waiting > 0
        has_news = is_busy or self.was_busy
        self.last_line, self.last_line_at_s, self.was_busy = self.engine, now_s, is_busy
        self.num_prompt_tokens = self.num_generation_tokens = 0
        if not has_news:
            return None
        hit_rate = f"{100 * hits / queries:.1f}%" if queries else "-"
        return (
            f"Engine: prompt {tokens[0] / elapsed_s:.1f} tokens/s, "
            f"generation {tokens[1] / elapsed_s:.1f} tokens/s, "
            f"running {self.engine.num_running} requests, waiting {self.engine.num_waiting}, "
            f"KV cache usage {100 * self.engine.kv_usage:.1f}%, prefix cache hit rate {hit_rate}"
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Log a line per interval for as long as the context is open."""
        task = asyncio.create_task(self._log_forever())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _log_forever(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            if line := self.line():
                logger.info("%s", line)


class NoLogging(LoggingStats):
    """For --disable-log-stats."""

    def line(self) -> str | None:
        return None
