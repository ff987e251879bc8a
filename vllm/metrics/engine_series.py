"""What one engine and its requests are counted in."""

from __future__ import annotations

from vllm.messages.engine import EngineStats, FinishReason
from vllm.metrics.families import EngineLabels, Families
from vllm.metrics.stats import FinishedRequest, IterationStats
from vllm.metrics.totals import grown_from


class EngineSeries:
    """The series of each family that has the labels of one engine."""

    def __init__(self, families: Families, labels: EngineLabels, counts_engine: bool) -> None:
        """`counts_engine`: this process counts the engine's steps too, not its requests alone."""
        self.counts_engine = counts_engine
        self.last = EngineStats()  # whose counters the exported ones have reached
        self.gauges = [(family.labels(*labels), field) for field, family in families.gauges.items()]
        self.counters = [
            (family.labels(*labels), field) for field, family in families.engine_counters.items()
        ]
        self.prompt_tokens, self.generation_tokens = (
            families.iteration_counters[field].labels(*labels)
            for field in ("num_prompt_tokens", "num_generation_tokens")
        )
        histograms = {key: family.labels(*labels) for key, family in families.histograms.items()}
        self.time_to_first_token = histograms["time_to_first_token"]
        self.inter_token = histograms["inter_token"]
        self.request_time_per_token = histograms["request_time_per_token"]
        self.inference_time = histograms["inference_time"]
        self.params_n = histograms["params_n"]
        self.longest = histograms["longest"]
        self.computed_tokens = histograms["computed_tokens"]
        self.iteration_tokens = histograms["iteration_tokens"]
        self.finished_histograms = [
            (family.labels(*labels), field)
            for field, family in families.finished_histograms.items()
        ]
        self.success = {
            reason: families.success.labels(*labels, str(reason)) for reason in FinishReason
        }
        if counts_engine:
            # Processes that share metrics do not show a gauge that was never set.
            for gauge, _ in self.gauges:
                gauge.set(0)

    def record(self, engine: EngineStats, iteration: IterationStats) -> None:
        if self.counts_engine:
            self._record_engine(engine)
        self.prompt_tokens.inc(iteration.num_prompt_tokens)
        self.generation_tokens.inc(iteration.num_generation_tokens)
        for seconds in iteration.time_to_first_token_s:
            self.time_to_first_token.observe(seconds)
        for seconds in iteration.inter_token_s:
            self.inter_token.observe(seconds)
        for finished in iteration.finished:
            self._record_finished(finished)
        for call in iteration.calls:
            self.params_n.observe(call.n)
            self.longest.observe(call.longest)

    def _record_engine(self, engine: EngineStats) -> None:
        before = grown_from(self.last, engine)
        for gauge, field in self.gauges:
            gauge.set(getattr(engine, field))
        for counter, field in self.counters:
            counter.inc(getattr(engine, field) - getattr(before, field))
        # One step, or those of a quarter second where other servers were told of the rest.
        num_steps = max(1, engine.num_steps - before.num_steps)
        if num_tokens := _num_computed(engine) - _num_computed(before):
            for _ in range(num_steps):
                self.iteration_tokens.observe(num_tokens / num_steps)
        self.last = engine

    def _record_finished(self, finished: FinishedRequest) -> None:
        self.success[finished.reason].inc()
        for histogram, field in self.finished_histograms:
            histogram.observe(getattr(finished, field))
        self.inference_time.observe(finished.prefill_s + finished.decode_s)
        self.computed_tokens.observe(finished.num_prompt_tokens - finished.num_cached_tokens)
        if finished.num_generation_tokens > 1:
            self.request_time_per_token.observe(
                finished.decode_s / (finished.num_generation_tokens - 1)
            )


def _num_computed(engine: EngineStats) -> int:
    return engine.num_prompt_tokens + engine.num_generation_tokens
