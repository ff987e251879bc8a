"""Where what the model's generation config says meets what a request says."""

from __future__ import annotations

import httpx
import pytest
import pytest_asyncio

from tests.entrypoints.openai.conftest import make_context
from vllm.entrypoints.openai.app import build_app
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats

pytestmark = pytest.mark.asyncio
LIMIT = 10
HELLO = [{"role": "user", "content": "Hi"}]
ENDPOINTS = {
    "completions": ("/v1/completions", {"prompt": "Hi"}, "max_tokens"),
    "chat": ("/v1/chat/completions", {"messages": HELLO}, "max_tokens"),
    "new chat": ("/v1/chat/completions", {"messages": HELLO}, "max_completion_tokens"),
    "responses": ("/v1/responses", {"input": "Hi"}, "max_output_tokens"),
    "messages": ("/v1/messages", {"messages": HELLO, "model": "fake"}, "max_tokens"),
}


@pytest_asyncio.fixture
async def client(engine):
    context = make_context(engine)
    context.model.default_sampling_params = {"max_tokens": LIMIT}
    metrics = PrometheusStats("fake", 4096, [{"block_size": "16"}])
    app = build_app(context, metrics, LoggingStats(10.0))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.parametrize(("path", "body", "name"), ENDPOINTS.values(), ids=ENDPOINTS)
@pytest.mark.parametrize(("asked", "expected"), [(15, 10), (10, 10), (3, 3), (None, 10)])
async def test_the_smaller_limit_of_output_tokens_counts(
    client, engine, path, body, name, asked, expected
):
    if asked is None and path == "/v1/messages":
        asked = 99  # it has to name a limit
    response = await client.post(path, json={**body, name: asked})
    assert response.status_code == 200, response.text
    assert [params.max_tokens for _, params, _ in engine.seen] == [expected]


async def test_a_request_that_names_no_limit_has_that_of_the_model(client, engine):
    await client.post("/v1/completions", json={"prompt": "Hi"})
    await client.post("/v1/chat/completions", json={"messages": HELLO})
    assert [params.max_tokens for _, params, _ in engine.seen] == [LIMIT, LIMIT]


async def test_scoring_is_not_limited(client):
    body = {"prompt": "Hi", "echo": True, "max_tokens": 0, "logprobs": 0}
    choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["text"] == "Hi"
