"""Steps of a rank on the timeline of its process."""

from __future__ import annotations

import time

from vllm.device.launch import Launch
from vllm.device.observer import StepObserver
from vllm.messages.step import StepPlan
from vllm.profiling.timeline import Timeline


class StepTimeline(StepObserver):
    """A span per step, in it one per launch, in that for receiving and for queueing the draws."""

    def __init__(self, timeline: Timeline, rank: int) -> None:
        self._timeline = timeline
        self._track = f"rank {rank}"
        self._step_ns = 0
        self._launch_ns = 0
        self._receiving_ns = 0
        self._drawing_ns = 0  # 0: this launch draws nothing

    def step_begins(self, plan: StepPlan) -> None:
        self._step_ns = time.perf_counter_ns()

    def launch_begins(self, launch: Launch) -> None:
        self._launch_ns, self._drawing_ns = time.perf_counter_ns(), 0

    def receiving_begins(self, launch: Launch) -> None:
        self._receiving_ns = time.perf_counter_ns()

    def receiving_ends(self, launch: Launch) -> None:
        self._timeline.span(self._track, "receive", self._receiving_ns)

    def drawing_begins(self, launch: Launch) -> None:
        self._drawing_ns = time.perf_counter_ns()

    def launch_ends(self, launch: Launch) -> None:
        if self._drawing_ns:
            self._timeline.span(self._track, "sampling", self._drawing_ns)
        self._span(str(launch.key), launch)

    def step_ends(self, plan: StepPlan) -> None:
        self._timeline.span(
            self._track,
            "step",
            self._step_ns,
            {"step": plan.step, "rows": plan.num_rows, "tokens": plan.num_tokens},
        )

    def rehearsal_begins(self, launch: Launch, captures: bool) -> None:
        self._launch_ns = time.perf_counter_ns()

    def rehearsal_ends(self, launch: Launch, captures: bool) -> None:
        self._span(f"{'capture' if captures else 'warm-up'} {launch.key}", launch)

    def close(self) -> None:
        self._timeline.flush()

    def _span(self, name: str, launch: Launch) -> None:
        key, real_tokens = launch.key, int(launch.counts_np.sum())
        self._timeline.span(
            self._track,
            name,
            self._launch_ns,
            {
                "phase": key.phase.name.lower(),
                "rows": key.rows,
                "query_len": key.query_len,
                "blocks": key.kv_blocks,
                "real rows": len(launch.plan_rows_np),
                "real tokens": real_tokens,
                "padding tokens": launch.num_tokens - real_tokens,
            },
        )
