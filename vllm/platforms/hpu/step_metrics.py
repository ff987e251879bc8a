"""What the plugin counts, step by step: compilations of graphs, and ops that ran on the CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vllm.device.launch import Launch, ShapeKey
from vllm.device.observer import StepObserver
from vllm.envs import Environment
from vllm.logger import init_logger
from vllm.messages.step import StepPlan
from vllm.platforms.hpu import bridge

logger = init_logger(__name__)

_MOST_DETAILS: Final = 8

Entries = Sequence[tuple[str, Any]]


class StepMetric(StepObserver, ABC):
    """Logs by how much a metric of the plugin grew in a step.

    A compilation counts when it is queued or done, as the plugin has it: with steps in flight, it
    may be counted with the step after the one that needed it.
    """

    metric: str  # the plugin's name of it

    def __init__(self, read: Callable[[], Entries], logs_all: bool) -> None:
        """`read` gives what the plugin has counted since the start."""
        self._read = read
        self._logs_all = logs_all
        self._before: Entries = ()
        self._keys: list[ShapeKey] = []

    def step_begins(self, plan: StepPlan) -> None:
        self._before = self._read()
        self._keys.clear()

    def launch_begins(self, launch: Launch) -> None:
        self._keys.append(launch.key)

    def step_ends(self, plan: StepPlan) -> None:
        after = self._read()
        number = int(dict(after)["TotalNumber"]) - int(dict(self._before)["TotalNumber"])
        if not number and not self._logs_all:
            return
        launches = ", ".join(map(str, self._keys)) or "no launch"
        log = logger.warning if number else logger.info
        log("Step %d (%s): %s", plan.step, launches, self.grown(number, self._before, after))

    @abstractmethod
    def grown(self, number: int, before: Entries, after: Entries) -> str:
        """The growth in words. `number`: that of TotalNumber."""


class StepCompilations(StepMetric):
    metric = "graph_compilation"

    def grown(self, number: int, before: Entries, after: Entries) -> str:
        text = f"{number} graph compilations"
        if not number:
            return text
        # Behind the totals: a recipe each, in their order, with PT_HPU_METRICS_GC_DETAILS=1.
        recipes = after[len(before) :]
        total = dict(after)["TotalTime"] - dict(before)["TotalTime"]
        text += f", total time {total} as the plugin counts it"
        if not recipes:
            return f"{text} (PT_HPU_METRICS_GC_DETAILS=1 names the recipes)"
        shown = ", ".join(f"{name} {lasted}" for name, lasted in recipes[:_MOST_DETAILS])
        more = len(recipes) - _MOST_DETAILS
        return f"{text}: {shown}" + (f" and {more} more" if more > 0 else "")


class StepFallbacks(StepMetric):
    metric = "cpu_fallback"

    def grown(self, number: int, before: Entries, after: Entries) -> str:
        text = f"{number} ops fell back to the CPU"
        if not number:
            return text
        old: Mapping[str, int] = dict(before)["FallbackOps"]
        new: Mapping[str, int] = dict(after)["FallbackOps"]
        grown = {op: count - old.get(op, 0) for op, count in new.items() if count > old.get(op, 0)}
        most = sorted(grown.items(), key=lambda item: -item[1])
        return f"{text}: " + ", ".join(f"{op} ({count})" for op, count in most[:_MOST_DETAILS])


def step_metrics(env: Environment) -> list[StepObserver]:
    """Those that VLLM_HPU_LOG_STEP_... asks for."""
    wanted: tuple[tuple[type[StepMetric], bool, bool], ...] = (
        (
            StepCompilations,
            env.VLLM_HPU_LOG_STEP_GRAPH_COMPILATION,
            env.VLLM_HPU_LOG_STEP_GRAPH_COMPILATION_ALL,
        ),
        (
            StepFallbacks,
            env.VLLM_HPU_LOG_STEP_CPU_FALLBACKS,
            env.VLLM_HPU_LOG_STEP_CPU_FALLBACKS_ALL,
        ),
    )
    return [
        kind(_reader(kind.metric), logs_all)
        for kind, logs_some, logs_all in wanted
        if logs_some or logs_all
    ]


def _reader(metric: str) -> Callable[[], Entries]:
    found = bridge.module("hpu.metrics").metric_global(metric)
    return lambda: entries_of(found.stats())


def entries_of(stats: Sequence[Any]) -> Entries:
    """A copy. Recipes come one by one, or as a list of their own."""
    entries: list[tuple[str, Any]] = []
    for entry in stats:
        entries += entry if isinstance(entry, list) else [entry]
    return [(name, dict(v) if isinstance(v, Mapping) else v) for name, v in entries]
