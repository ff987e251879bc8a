"""Spans, as a collector receives them over HTTP."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.engine.scripted_core import ScriptedCore
from vllm.config.vllm import VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.client import InProcessClient
from vllm.errors import ConfigError
from vllm.metrics.tracing import PROTOCOL_VARIABLE
from vllm.sampling_params import SamplingParams

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Collector:
    """Keeps what is sent to /v1/traces."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv(PROTOCOL_VARIABLE, "http/protobuf")
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def tracing_engine(config: VllmConfig, endpoint: str, **core: Any) -> AsyncLLM:
    observability = dataclasses.replace(config.observability, otlp_traces_endpoint=endpoint)
    config = dataclasses.replace(config, observability=observability)
    return AsyncLLM(config, InProcessClient(config, lambda c: ScriptedCore(c, **core)))


def values_of(span: Any) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


async def test_a_request_is_a_span_under_the_clients(
    config: VllmConfig, collector: Collector
) -> None:
    llm = tracing_engine(config, collector.endpoint, step_s=0.002)
    assert await llm.is_tracing_enabled()
    params = SamplingParams(n=2, temperature=0.5, max_tokens=4)
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    async for _ in llm.generate([5, 6, 7], params, "mine", trace_headers=headers):
        pass
    llm.shutdown()

    (span,) = collector.spans()
    assert span.name == "llm_request"
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == PARENT_ID
    values = values_of(span)
    assert values["gen_ai.request.id"] == "mine"
    assert values["gen_ai.response.model"] == config.model.served_model_name[0]
    assert values["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert values["gen_ai.request.temperature"] == 0.5
    assert (values["gen_ai.request.n"], values["gen_ai.request.max_tokens"]) == (2, 4)
    assert values["gen_ai.usage.prompt_tokens"] == 3
    assert values["gen_ai.usage.completion_tokens"] == 8
    assert 0 < values["gen_ai.latency.time_to_first_token"] <= values["gen_ai.latency.e2e"]
    assert values["gen_ai.latency.time_in_model_decode"] > 0
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx(values["gen_ai.latency.e2e"], abs=1e-5)


async def test_an_aborted_request_and_one_without_a_parent_have_spans_too(
    config: VllmConfig, collector: Collector
) -> None:
    llm = tracing_engine(config, collector.endpoint, step_s=0.002)
    stream = llm.generate([5], SamplingParams(max_tokens=900), "gone")
    await anext(stream)
    await stream.aclose()
    llm.shutdown()

    (span,) = collector.spans()
    assert not span.parent_span_id
    assert values_of(span)["gen_ai.response.finish_reasons"] == ["abort"]


async def test_broken_trace_headers_do_not_harm_the_request(
    config: VllmConfig, collector: Collector
) -> None:
    llm = tracing_engine(config, collector.endpoint)
    headers = {"traceparent": "nonsense", "tracestate": "=,="}
    async for _ in llm.generate([5], SamplingParams(max_tokens=1), "a", trace_headers=headers):
        pass
    llm.shutdown()
    assert len(collector.spans()) == 1


def test_a_protocol_that_does_not_exist_is_refused(
    config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROTOCOL_VARIABLE, "pigeon")
    with pytest.raises(ConfigError, match="pigeon: must be grpc or http/protobuf"):
        tracing_engine(config, "http://127.0.0.1:1")
