"""Counters of the bridge: compilations, fallbacks, the recipe cache.

Times are in microseconds. A compilation takes what HPU_EMULATOR_COMPILE_MS says, 0 without it.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpu_emulator import fallbacks, recipe_cache, recipes

Stats = list[tuple[str, Any]]
_TRIGGERS = ("process_exit", "metric_change", "mark_step")


class Metric(ABC):
    """What happened since start(), or since the last reset(), until stop()."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin: Any = None
        self._end: Any = None
        self.start()

    def name(self) -> str:
        return self._name

    def start(self) -> None:
        self._begin, self._end = self._now(), None

    def stop(self) -> None:
        self._end = self._now()

    def reset(self) -> None:
        self._begin = self._now()
        self._end = None if self._end is None else self._begin

    def stats(self) -> Stats:
        return self._between(self._begin, self._now() if self._end is None else self._end)

    @abstractmethod
    def _now(self) -> Any: ...

    @abstractmethod
    def _between(self, begin: Any, end: Any) -> Stats: ...


class GraphCompilation(Metric):
    def _now(self) -> int:
        return len(recipe_cache.compiled)

    def _between(self, begin: int, end: int) -> Stats:
        made = recipe_cache.compiled[begin:end]
        total = sum(microseconds for _, microseconds in made)
        average = total / len(made) if made else 0
        totals: Stats = [("TotalNumber", len(made)), ("TotalTime", total), ("AvgTime", average)]
        return totals + made if os.environ.get("PT_HPU_METRICS_GC_DETAILS") == "1" else totals


class CpuFallback(Metric):
    def _now(self) -> Counter[str]:
        return fallbacks.counts()

    def _between(self, begin: Counter[str], end: Counter[str]) -> Stats:
        ops = end - begin
        return [("TotalNumber", ops.total()), ("FallbackOps", dict(ops))]


class MemoryDefragmentation(Metric):
    """Always 0: memory of the emulated device does not fragment."""

    def _now(self) -> None:
        return None

    def _between(self, begin: None, end: None) -> Stats:
        return [(name, 0) for name in ("TotalNumber", "TotalSuccessful", "AvgTime", "MaxTime")]


class RecipeCache(Metric):
    """Hits are launches of recipes known to the process, and recipes found on disk."""

    def _now(self) -> tuple[int, int, int]:
        return recipes.launches(), recipe_cache.num_loaded(), len(recipe_cache.compiled)

    def _between(self, begin: tuple[int, int, int], end: tuple[int, int, int]) -> Stats:
        launched, loaded, compiled = (b - a for a, b in zip(begin, end, strict=True))
        hits = max(0, launched - compiled)
        return [
            ("TotalHit", hits),
            ("RecipeHit", loaded),
            ("TotalMiss", compiled),
            ("RecipeMiss", compiled),
        ]


_KINDS: dict[str, type[Metric]] = {
    "graph_compilation": GraphCompilation,
    "cpu_fallback": CpuFallback,
    "memory_defragmentation": MemoryDefragmentation,
}
if os.environ.get("PT_HPU_ENABLE_CACHE_METRICS", "").lower() in {"1", "true", "yes", "on"}:
    _KINDS["recipe_cache"] = RecipeCache
_global = {name: kind(name) for name, kind in _KINDS.items()}


def metric_global(name: str) -> Metric:
    """Of the whole process. Raises KeyError for a metric that does not exist."""
    _check(name)
    return _global[name]


@contextmanager
def metric_localcontext(name: str) -> Iterator[Metric]:
    """Of the block only; still readable after it."""
    _check(name)
    metric = _KINDS[name](name)
    try:
        yield metric
    finally:
        metric.stop()


def _check(name: str) -> None:
    if name == "recipe_cache" and name not in _KINDS:
        raise KeyError("recipe_cache exists with PT_HPU_ENABLE_CACHE_METRICS=true only")
    if name not in _KINDS:
        raise KeyError(f"no metric is called {name!r}; there are {', '.join(_KINDS)}")


def metrics_dump(path: str | None = None, trigger: str = "user") -> None:
    """Appends all metrics, as one JSON object in a line, to `path` or PT_HPU_METRICS_FILE."""
    target = path or os.environ.get("PT_HPU_METRICS_FILE")
    if not target:
        raise ValueError("no file to dump metrics to: give one, or set PT_HPU_METRICS_FILE")
    values = {name: dict(metric.stats()) for name, metric in _global.items()}
    entry = {"triggered_by": trigger, "time_s": time.time(), "metrics": values}
    with open(target, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _triggers() -> frozenset[str]:
    text = os.environ.get("PT_HPU_METRICS_DUMP_TRIGGERS", "process_exit")
    chosen = frozenset(part.strip() for part in text.split(",") if part.strip())
    if unknown := chosen - set(_TRIGGERS):
        raise ValueError(
            f"PT_HPU_METRICS_DUMP_TRIGGERS: {', '.join(sorted(unknown))} is not one of "
            f"{', '.join(_TRIGGERS)}"
        )
    return chosen


def _dump_on_triggers() -> None:
    from habana_frameworks.torch.core import step

    chosen = _triggers()
    if "process_exit" in chosen:
        atexit.register(metrics_dump, None, "process_exit")
    if "metric_change" in chosen:
        recipe_cache.on_compiled.append(lambda: metrics_dump(None, "metric_change"))
        fallbacks.add_listener(lambda op: metrics_dump(None, "metric_change"))
    if "mark_step" in chosen:
        step.add_step_listener(lambda: metrics_dump(None, "mark_step"))


if os.environ.get("PT_HPU_METRICS_FILE"):
    _dump_on_triggers()

__all__ = ["Metric", "metric_global", "metric_localcontext", "metrics_dump"]
