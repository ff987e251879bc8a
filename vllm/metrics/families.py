"""Families of Prometheus metrics, under the names that dashboards for vLLM read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SHARED_GAUGE: Final = "mostrecent"  # of gauges that several processes set


class EngineLabels(NamedTuple):
    """Labels of every series of one engine."""

    model_name: str
    engine: str  # number among all copies of the model


ENGINE_LABELS: Final = EngineLabels._fields

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
LENGTHS: Final = ()  # stands for edges up to the model's length

# name, help, field of EngineStats
GAUGES: Final = (
    ("vllm:num_requests_running", "Requests in the running batch", "num_running"),
    ("vllm:num_requests_waiting", "Requests waiting to run", "num_waiting"),
    ("vllm:kv_cache_usage_perc", "Share of KV blocks in use; 1 is all", "kv_usage"),
)
ENGINE_COUNTERS: Final = (
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "prefix_queries"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", "prefix_hits"),
    ("vllm:num_preemptions", "Requests preempted", "num_preemptions"),
)
# name, help, field of IterationStats
ITERATION_COUNTERS: Final = (
    ("vllm:prompt_tokens", "Prompt tokens of requests", "num_prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated", "num_generation_tokens"),
)
# name, help, key in Families.histograms, edges
HISTOGRAMS: Final[tuple[tuple[str, str, str, Sequence[float]], ...]] = (
    (
        "vllm:time_to_first_token_seconds",
        "Arrival to first token",
        "time_to_first_token",
        FIRST_TOKEN_S,
    ),
    (
        "vllm:inter_token_latency_seconds",
        "Between two tokens of a request",
        "inter_token",
        TOKEN_S,
    ),
    (
        "vllm:request_time_per_output_token_seconds",
        "Mean of a request",
        "request_time_per_token",
        TOKEN_S,
    ),
    (
        "vllm:request_inference_time_seconds",
        "First scheduled to last token",
        "inference_time",
        REQUEST_S,
    ),
    ("vllm:request_params_n", "n of a request", "params_n", COUNTS),
    (
        "vllm:request_max_num_generation_tokens",
        "Generated tokens of the longest sequence of a request",
        "longest",
        LENGTHS,
    ),
    (
        "vllm:request_prefill_kv_computed_tokens",
        "Prompt tokens of a request that were not in the prefix cache",
        "computed_tokens",
        LENGTHS,
    ),
    ("vllm:iteration_tokens_total", "Tokens computed by a step", "iteration_tokens", STEP_TOKENS),
)
# name, help, field of FinishedRequest, edges
FINISHED_HISTOGRAMS: Final[tuple[tuple[str, str, str, Sequence[float]], ...]] = (
    ("vllm:e2e_request_latency_seconds", "Arrival to last token", "e2e_s", REQUEST_S),
    ("vllm:request_queue_time_seconds", "Arrival to first scheduled", "queue_s", REQUEST_S),
    (
        "vllm:request_prefill_time_seconds",
        "First scheduled to first token",
        "prefill_s",
        REQUEST_S,
    ),
    ("vllm:request_decode_time_seconds", "First token to last token", "decode_s", REQUEST_S),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request", "num_prompt_tokens", LENGTHS),
    (
        "vllm:request_generation_tokens",
        "Generated tokens of a request",
        "num_generation_tokens",
        LENGTHS,
    ),
    ("vllm:request_params_max_tokens", "max_tokens of a request", "max_tokens", LENGTHS),
)


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


class Families:
    """Made once per registry. Every engine has a series of each, under its EngineLabels."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        lengths = series_1_2_5(max(max_model_len, 1))
        # All by field, or key, of the tables above.
        self.gauges = {
            field: Gauge(
                name, text, ENGINE_LABELS, registry=registry, multiprocess_mode=SHARED_GAUGE
            )
            for name, text, field in GAUGES
        }
        self.engine_counters, self.iteration_counters = (
            {
                field: Counter(name, text, ENGINE_LABELS, registry=registry)
                for name, text, field in rows
            }
            for rows in (ENGINE_COUNTERS, ITERATION_COUNTERS)
        )
        self.histograms, self.finished_histograms = (
            {
                key: Histogram(
                    name, text, ENGINE_LABELS, registry=registry, buckets=edges or lengths
                )
                for name, text, key, edges in rows
            }
            for rows in (HISTOGRAMS, FINISHED_HISTOGRAMS)
        )
        self.success = Counter(
            "vllm:request_success",
            "Requests ended, by reason",
            (*ENGINE_LABELS, "finished_reason"),
            registry=registry,
        )
