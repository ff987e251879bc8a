"""A span per request, to an OpenTelemetry collector. The SDK is imported only when asked for."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm import envs
from vllm.errors import ConfigError
from vllm.outputs import RequestMetrics
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PROTOCOL_VARIABLE: Final = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
PROTOCOLS: Final = ("grpc", "http/protobuf")
SPAN_NAME: Final = "llm_request"
NS: Final = 1_000_000_000
CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request that has ended, as its span tells it."""

    request_id: str
    headers: Mapping[str, str] | None  # traceparent and tracestate of whoever asked
    params: SamplingParams
    metrics: RequestMetrics
    num_prompt_tokens: int
    num_generation_tokens: int  # of all sequences
    finish_reasons: tuple[str, ...]


class RequestTracer:
    """Owns the thread that sends. Safe to call from any thread."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        """Raises ConfigError for a protocol that does not exist, or without the SDK."""
        exporter = _exporter(endpoint)
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.model_name = model_name
        self._provider = TracerProvider(shutdown_on_exit=False)
        atexit.register(self.close)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vllm.llm_engine")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    def record(self, request: TracedRequest) -> None:
        metrics = request.metrics
        end_s = metrics.finished_time or metrics.last_token_time or metrics.arrival_time
        span = self._tracer.start_span(
            SPAN_NAME,
            context=self._propagator.extract(request.headers) if request.headers else None,
            kind=self._kind,
            attributes=self._attributes(request, end_s),
            start_time=int(metrics.arrival_time * NS),
        )
        span.end(int(end_s * NS))

    def close(self) -> None:
        """Send what waits, if the collector takes it soon. May be called again."""
        atexit.unregister(self.close)
        # Shutting down tries again and again, for longer than a server has to end.
        last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        last.start()
        last.join(CLOSE_S)

    def _attributes(
        self, request: TracedRequest, end_s: float
    ) -> dict[str, str | int | float | tuple[str, ...]]:
        metrics, params = request.metrics, request.params
        found: dict[str, str | int | float | tuple[str, ...]] = {
            "gen_ai.response.model": self.model_name,
            "gen_ai.response.finish_reasons": request.finish_reasons,
            "gen_ai.request.id": request.request_id,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.n": params.n,
            "gen_ai.usage.num_sequences": params.num_sequences,
            "gen_ai.usage.prompt_tokens": request.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": request.num_generation_tokens,
            "gen_ai.latency.e2e": end_s - metrics.arrival_time,
        }
        if params.max_tokens is not None:
            found["gen_ai.request.max_tokens"] = params.max_tokens
        if metrics.first_token_time is None or metrics.last_token_time is None:
            return found  # it ended before its first token
        queued_s = metrics.time_in_queue or 0.0
        scheduled_s = metrics.arrival_time + queued_s
        found["gen_ai.latency.time_in_queue"] = queued_s
        found["gen_ai.latency.time_to_first_token"] = (
            metrics.first_token_time - metrics.arrival_time
        )
        for name, begin_s, until_s in (
            ("prefill", scheduled_s, metrics.first_token_time),
            ("decode", metrics.first_token_time, metrics.last_token_time),
            ("inference", scheduled_s, metrics.last_token_time),
        ):
            found[f"gen_ai.latency.time_in_model_{name}"] = max(0.0, until_s - begin_s)
        return found


def _exporter(endpoint: str) -> SpanExporter:
    protocol = envs.inherited(PROTOCOL_VARIABLE) or "grpc"
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"{PROTOCOL_VARIABLE}={protocol}: must be {' or '.join(PROTOCOLS)} to send traces."
        )
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

            return grpc.OTLPSpanExporter(
                endpoint=endpoint, insecure=not endpoint.startswith("https://")
            )
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

        return http.OTLPSpanExporter(endpoint=endpoint)
    except ImportError as error:
        raise ConfigError(
            f"--otlp-traces-endpoint {endpoint}: {error.name} is not installed. Run "
            "`pip install opentelemetry-sdk opentelemetry-exporter-otlp`, or leave the flag out."
        ) from None
