"""What the engine core does, for those who watch it."""

from __future__ import annotations

import time
from typing import Final

from vllm.messages.engine import EngineStats
from vllm.messages.step import StepPlan
from vllm.profiling.timeline import Timeline

_RATE_WINDOW_NS: Final = 100_000_000


class CoreWatch:
    """Does nothing. The core is in one phase at a time: each call ends the one before."""

    def scheduling(self) -> None:
        pass

    def submitting(self, plan: StepPlan) -> None:
        pass

    def waiting(self, plan: StepPlan) -> None:
        pass

    def committing(self, plan: StepPlan) -> None:
        pass

    def committed(self, plan: StepPlan) -> None:
        pass

    def counted(self, stats: EngineStats) -> None:
        pass

    def close(self) -> None:
        pass


class TimelineWatch(CoreWatch):
    """Spans of the core, the time of each step from plan to result, and counters."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._begun_ns = 0
        self._rates_ns = time.perf_counter_ns()
        self._rates_of = EngineStats()  # as of the last rates
        self._gauges: tuple[int, int, float] | None = None  # as last written

    def scheduling(self) -> None:
        self._begun_ns = time.perf_counter_ns()

    def submitting(self, plan: StepPlan) -> None:
        facts = {"step": plan.step, "rows": plan.num_rows, "tokens": plan.num_tokens}
        self._span("schedule", facts | {"admitted": len(plan.admissions)})
        self._timeline.begin("step in flight", plan.step, facts)

    def waiting(self, plan: StepPlan) -> None:
        self._begun_ns = time.perf_counter_ns()

    def committing(self, plan: StepPlan) -> None:
        self._span("wait for tokens", {"step": plan.step})
        self._timeline.end("step in flight", plan.step)

    def committed(self, plan: StepPlan) -> None:
        self._span("commit", {"step": plan.step})

    def counted(self, stats: EngineStats) -> None:
        gauges = (stats.num_running, stats.num_waiting, round(100 * stats.kv_usage, 2))
        if gauges != self._gauges:
            self._gauges = gauges
            self._timeline.count("requests", {"running": gauges[0], "waiting": gauges[1]})
            self._timeline.count("KV cache", {"used %": gauges[2]})
        self._count_rates(stats)

    def close(self) -> None:
        self._timeline.flush()

    def _span(self, name: str, arguments: dict[str, int]) -> None:
        self._timeline.span("engine core", name, self._begun_ns, arguments)
        self._begun_ns = time.perf_counter_ns()

    def _count_rates(self, stats: EngineStats) -> None:
        now_ns, before = time.perf_counter_ns(), self._rates_of
        elapsed_ns = now_ns - self._rates_ns
        is_idle = stats.num_running == 0 and stats.num_waiting == 0
        if elapsed_ns < _RATE_WINDOW_NS and not is_idle:
            return
        prompt = stats.num_prompt_tokens - before.num_prompt_tokens
        generated = stats.num_generation_tokens - before.num_generation_tokens
        per_s = 1e9 / max(elapsed_ns, 1)
        self._timeline.count(
            "tokens per second",
            {
                "prompt": 0.0 if is_idle else prompt * per_s,
                "generation": 0.0 if is_idle else generated * per_s,
            },
        )
        self._rates_ns, self._rates_of = now_ns, stats


def make_watch(timeline: Timeline) -> CoreWatch:
    return TimelineWatch(timeline) if timeline.is_on else CoreWatch()
