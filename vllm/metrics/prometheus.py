"""Prometheus metrics under the names that dashboards for vLLM read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from typing_extensions import Self

from vllm.messages.engine import EngineReady, EngineStats, FinishReason
from vllm.messages.facts import RankMemory
from vllm.metrics.older_names import WithOlderNames
from vllm.metrics.shapes import ShapeMetrics
from vllm.metrics.shared import is_shared, shared_registry
from vllm.metrics.silence import SilenceMetric
from vllm.metrics.stats import FinishedRequest, IterationStats

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHARED_GAUGE: Final = "mostrecent"  # of those that several processes set
ENGINE_LABELS = ("model_name", "engine")


def series_1_2_5(high: int) -> list[float]:
    """Bucket bounds 1, 2, 5, 10, 20 … to the last one up to `high`."""
    bounds: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > high:
                return bounds
            bounds.append(float(step * scale))
        scale *= 10


# Alerts and dashboards name single edges, such as le="0.25": these are vLLM's, all of them.
FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
COUNTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
STEP_TOKENS: Final = (1.0, *(float(2**i) for i in range(3, 15)))

# name, help, field of FinishedRequest
FINISHED_SECONDS = (
    ("vllm:e2e_request_latency_seconds", "Arrival to last token", "e2e_s"),
    ("vllm:request_queue_time_seconds", "Arrival to first scheduled", "queue_s"),
    ("vllm:request_prefill_time_seconds", "First scheduled to first token", "prefill_s"),
    ("vllm:request_decode_time_seconds", "First token to last token", "decode_s"),
)
FINISHED_TOKENS = (
    ("vllm:request_prompt_tokens", "Prompt tokens of a request", "num_prompt_tokens"),
    ("vllm:request_generation_tokens", "Generated tokens of a request", "num_generation_tokens"),
    ("vllm:request_params_max_tokens", "max_tokens of a request", "max_tokens"),
)
# name, help, field of EngineStats
GAUGES: Final = (
    ("vllm:num_requests_running", "Requests in the running batch", "num_running"),
    ("vllm:num_requests_waiting", "Requests waiting to run", "num_waiting"),
    ("vllm:kv_cache_usage_perc", "Share of KV blocks in use; 1 is all", "kv_usage"),
)
COUNTERS: Final = (
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "prefix_queries"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", "prefix_hits"),
    ("vllm:num_preemptions", "Requests preempted", "num_preemptions"),
)


class PrometheusStats:
    """A StatLogger. Owns its registry, so that several engines can live in one process.

    Where several API servers share one engine (vllm.metrics.shared), every one counts its own
    requests, one of them has `counts_engine` and counts the engine's steps, and any of them shows
    the metrics of all.
    """

    def __init__(
        self,
        model_name: str,
        max_model_len: int,
        cache_info: dict[str, str],
        counts_engine: bool = True,
    ) -> None:
        self.counts_engine = counts_engine
        self.registry = CollectorRegistry()
        self.labels = (model_name, "0")
        disable_created_metrics()  # type: ignore[no-untyped-call]
        tokens = series_1_2_5(max(max_model_len, 1))
        self.gauges = [(self._gauge(name, text), field) for name, text, field in GAUGES]
        self.counters = [(self._counter(name, text), field) for name, text, field in COUNTERS]
        self.last = EngineStats()  # whose counters the exported ones have reached
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of requests")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated")
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token", FIRST_TOKEN_S
        )
        self.inter_token = self._histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request", TOKEN_S
        )
        self.request_time_per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean of a request", TOKEN_S
        )
        self.inference_time = self._histogram(
            "vllm:request_inference_time_seconds", "First scheduled to last token", REQUEST_S
        )
        self.params_n = self._histogram("vllm:request_params_n", "n of a request", COUNTS)
        self.longest = self._histogram(
            "vllm:request_max_num_generation_tokens",
            "Generated tokens of the longest sequence of a request",
            tokens,
        )
        self.computed_tokens = self._histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not in the prefix cache",
            tokens,
        )
        self.iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens computed by a step", STEP_TOKENS
        )
        self.finished_histograms = [
            (self._histogram(name, text, REQUEST_S), field)
            for name, text, field in FINISHED_SECONDS
        ] + [(self._histogram(name, text, tokens), field) for name, text, field in FINISHED_TOKENS]
        success = Counter(
            "vllm:request_success",
            "Requests ended, by reason",
            (*ENGINE_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.success = {
            reason: success.labels(*self.labels, str(reason)) for reason in FinishReason
        }
        self._cache_info(cache_info)
        labels = dict(zip(ENGINE_LABELS, self.labels, strict=True))
        self.shapes, self.silence = ShapeMetrics(labels), SilenceMetric(labels)
        for collector in (self.shapes, self.silence):
            self.registry.register(collector)
        if not is_shared():
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    @classmethod
    def of(cls, config: VllmConfig, ready: EngineReady, counts_engine: bool = True) -> Self:
        """Those of a running engine, which has measured what `ready` says."""
        cache = config.cache
        info = {field.name: str(getattr(cache, field.name)) for field in fields(cache)}
        info |= {"num_gpu_blocks": str(ready.num_blocks), "num_cpu_blocks": "0"}
        model = config.model
        stats = cls(model.served_model_name[0], model.max_model_len, info, counts_engine)
        if counts_engine:
            stats.show_ranks(ready.ranks)
        return stats

    def show_ranks(self, ranks: Sequence[RankMemory]) -> None:
        gauge = Gauge(
            "vllm:rank_memory_bytes",
            "What the memory of a rank's device goes to",
            (*ENGINE_LABELS, "rank", "part"),
            registry=self.registry,
            multiprocess_mode=SHARED_GAUGE,
        )
        for rank, memory in enumerate(ranks):
            for part, num_bytes in msgspec.structs.asdict(memory).items():
                gauge.labels(*self.labels, str(rank), part).set(num_bytes)

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

    def exposition(self) -> bytes:
        shown = CollectorRegistry()
        shown.register(WithOlderNames(shared_registry() if is_shared() else self.registry))
        if is_shared():  # these come from the engine as they are, to whichever server is asked
            shown.register(self.shapes)
            shown.register(self.silence)
        return generate_latest(shown)

    def _record_engine(self, engine: EngineStats) -> None:
        for gauge, field in self.gauges:
            gauge.set(getattr(engine, field))
        for counter, field in self.counters:
            counter.inc(max(0, getattr(engine, field) - getattr(self.last, field)))
        # One step, or those of a quarter second where other servers were told of the rest.
        num_steps = max(1, engine.num_steps - self.last.num_steps)
        if num_tokens := _num_computed(engine) - _num_computed(self.last):
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

    def _cache_info(self, cache_info: dict[str, str]) -> None:
        names = ("engine", *cache_info)
        gauge = Gauge(
            "vllm:cache_config_info",
            "Settings of the KV cache",
            names,
            registry=self.registry,
            multiprocess_mode=SHARED_GAUGE,
        )
        gauge.labels("0", *cache_info.values()).set(1)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(
            name,
            text,
            ENGINE_LABELS,
            registry=self.registry,
            multiprocess_mode=SHARED_GAUGE,
        ).labels(*self.labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ENGINE_LABELS, registry=self.registry).labels(*self.labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, ENGINE_LABELS, registry=self.registry, buckets=buckets).labels(
            *self.labels
        )


def _num_computed(engine: EngineStats) -> int:
    return engine.num_prompt_tokens + engine.num_generation_tokens
