from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

BODY = {"prompt": "Hi", "max_tokens": 2}
BOARD = Path(__file__).resolve().parents[3] / "examples" / "observability" / "grafana.json"


@asynccontextmanager
async def connect(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def exported(client) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.asyncio
async def test_http_requests_are_counted_by_route_method_and_class_of_status(client):
    for path, body in (
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "stream": True}),
        ("/v1/completions", {"n": "x"}),
        ("/v1/nothing/a", {}),
        ("/v1/nothing/b", {}),
    ):
        await client.post(path, json=body)
    await client.get("/v1/models/fake")
    await client.get("/health")
    now = await exported(client)
    assert now["http_requests_total", "/v1/completions", "2xx", "POST"] == 2
    assert now["http_requests_total", "/v1/completions", "4xx", "POST"] == 1
    assert now["http_requests_total", "4xx", "none", "none"] == 2
    assert now["http_requests_total", "/v1/models/{model:path}", "2xx", "GET"] == 1
    assert not any("/health" in key for key in now)
    assert now["http_request_duration_seconds_count", "/v1/completions", "POST"] == 3
    assert now["http_request_duration_highr_seconds_count",] == 6
    assert now["http_response_size_bytes_sum", "/v1/completions"] > 200
    assert now["http_request_size_bytes_sum", "/v1/completions"] > 60


@pytest.mark.asyncio
async def test_an_error_of_ours_counts_as_one(client, engine):
    engine.raises = ValueError("boom")
    await client.post("/v1/completions", json=BODY)
    now = await exported(client)
    assert now["http_requests_total", "/v1/completions", "5xx", "POST"] == 1


@pytest.mark.asyncio
async def test_the_clients_trace_context_reaches_the_engine_where_traces_are_sent(make_app, engine):
    headers = {"traceparent": "00-1-2-01", "tracestate": "a=b", "x-other": "c"}
    for endpoint, expected in (
        ("http://collector:4317", {"traceparent": "00-1-2-01", "tracestate": "a=b"}),
        ("", None),
    ):
        async with connect(make_app(otlp_traces_endpoint=endpoint)) as client:
            for stream in (False, True):
                await client.post(
                    "/v1/completions", json={**BODY, "stream": stream}, headers=headers
                )
                assert engine.trace_headers == expected
            await client.post("/v1/completions", json=BODY)
            assert engine.trace_headers is None


@pytest.mark.asyncio
async def test_the_board_queries_only_what_is_exported(client):
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked = {
        name for query in queries for name in re.findall(r"\b(?:vllm:|http_|process_)\w+", query)
    }
    assert len(asked) > 15
    text = (await client.get("/metrics")).text
    names = set()
    for family in text_string_to_metric_families(text):
        names.add(family.name)
        names |= {sample.name for sample in family.samples}
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        if family.type == "counter":
            names.add(f"{family.name}_total")
    assert asked - names == set()
