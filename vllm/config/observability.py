"""What the engine says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityConfig:
    disable_log_stats: bool = option(
        False, local=True, help="Log no statistics (speed, queue, cache use) at intervals."
    )
    log_stats_interval_s: float = option(
        10.0,
        low=0.1,
        local=True,
        flag="--log-stats-interval",
        help="Seconds between lines of statistics.",
    )
    enable_log_requests: bool = option(False, local=True, help="Log every request that arrives.")
    otlp_traces_endpoint: str = option(
        "",
        local=True,
        help="Send a trace span per request to this OpenTelemetry collector, such as "
        "http://localhost:4317. OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: grpc (unless set) or "
        "http/protobuf.",
    )
