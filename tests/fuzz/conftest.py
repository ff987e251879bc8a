"""A real server to attack, and the checks that it has come to no harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.entrypoints.openai.real_server import NAME, RealServer, serving
from tests.limits import HANG_S


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    flags = ["--served-model-name", NAME, "--client-timeout", "2"]
    flags += ["--enable-request-id-headers", "--enable-tokenizer-info-endpoint"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving(*flags, log=log) as server:
        yield server


@pytest.fixture(scope="package")
def schema(server: RealServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


@pytest.fixture
def unharmed(server: RealServer) -> Iterator[None]:
    """Afterwards nothing runs, waits or is leaked, and a greedy answer is what it was before."""
    before = greedy_text(server)
    yield
    assert server.process.poll() is None, server.log.read_text()[-4000:]
    server.wait_for_metric("vllm:num_requests_running", 0.0)
    server.wait_for_metric("vllm:num_requests_waiting", 0.0)
    server.wait_for_metric("vllm:kv_cache_usage_perc", 0.0)
    assert greedy_text(server) == before
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "Traceback" not in server.log.read_text()


def greedy_text(server: RealServer) -> str:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text
