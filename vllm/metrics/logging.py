"""Lines of statistics at intervals, while there is something to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from vllm.logger import init_logger
from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats
from vllm.metrics.totals import grown_from

logger = init_logger(__name__)


class EngineLine:
    """Rates of one engine since its last line, and one line when it goes idle."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = EngineStats()
        self.last_line = EngineStats()  # the counters as of the last line
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.was_busy = False

    def record(self, engine: EngineStats, iteration: IterationStats) -> None:
        self.engine = engine
        self.num_prompt_tokens += iteration.num_prompt_tokens
        self.num_generation_tokens += iteration.num_generation_tokens

    def take(self, elapsed_s: float) -> str | None:
        """The line of the time since the last call; None when the engine was and is idle."""
        tokens = (self.num_prompt_tokens, self.num_generation_tokens)
        before = grown_from(self.last_line, self.engine)
        queries = self.engine.prefix_queries - before.prefix_queries
        hits = self.engine.prefix_hits - before.prefix_hits
        is_busy = any(tokens) or self.engine.num_running > 0 or self.engine.num_waiting > 0
        has_news = is_busy or self.was_busy
        self.last_line, self.was_busy = self.engine, is_busy
        self.num_prompt_tokens = self.num_generation_tokens = 0
        if not has_news:
            return None
        hit_rate = f"{100 * hits / queries:.1f}%" if queries else "-"
        return (
            f"{self.name}: prompt {tokens[0] / elapsed_s:.1f} tokens/s, "
            f"generation {tokens[1] / elapsed_s:.1f} tokens/s, "
            f"running {self.engine.num_running} requests, waiting {self.engine.num_waiting}, "
            f"KV cache usage {100 * self.engine.kv_usage:.1f}%, prefix cache hit rate {hit_rate}"
        )


class LoggingStats:
    """A StatLogger that logs a line per engine with something to say."""

    def __init__(
        self,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        num_engines: int = 1,
        first_engine: int = 0,
    ) -> None:
        """The cores are engines `first_engine` and following; an only one has no number."""
        self.interval_s = interval_s
        self.clock = clock
        self.last_line_at_s = clock()
        numbers = range(first_engine, first_engine + num_engines)
        names = [f"Engine {number:03d}" for number in numbers] if num_engines > 1 else ["Engine"]
        self.engines = [EngineLine(name) for name in names]

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.engines[core].record(engine, iteration)

    def lines(self) -> list[str]:
        """The statistics since the last call, of engines that were not idle all the time."""
        now_s = self.clock()
        elapsed_s = max(now_s - self.last_line_at_s, 1e-9)
        self.last_line_at_s = now_s
        lines = [engine.take(elapsed_s) for engine in self.engines]
        return [line for line in lines if line is not None]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Log lines at intervals for as long as the context is open."""
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
            for line in self.lines():
                logger.info("%s", line)


class NoLogging(LoggingStats):
    """For --disable-log-stats."""

    def lines(self) -> list[str]:
        return []
