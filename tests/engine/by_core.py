"""A logger of statistics that keeps the latest of every engine core."""

from __future__ import annotations

from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats


class ByCore:
    """The latest statistics of every engine core."""

    def __init__(self) -> None:
        self.stats: dict[int, EngineStats] = {}

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.stats[core] = engine

    def total(self, field: str) -> int:
        return sum(getattr(stats, field) for stats in self.stats.values())
