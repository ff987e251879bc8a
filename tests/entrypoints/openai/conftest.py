from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from tests.entrypoints.openai.real_server import NAME, RealServer, serving
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats


def make_context(engine: FakeEngine, **options: Any) -> ServingContext:
    model = SimpleNamespace(
        model="/models/fake",
        served_model_name=("fake", "alias"),
        max_model_len=4096,
        vocab_size=256,
        default_sampling_params={},
        max_logprobs=20,
        logprobs_mode="raw_logprobs",
        eos_token_ids=frozenset(),
    )
    observability = {"enable_log_requests": False, "otlp_traces_endpoint": ""}
    observability |= {name: options.pop(name) for name in observability if name in options}
    config = SimpleNamespace(model=model, observability=SimpleNamespace(**observability))
    return ServingContext(
        engine=engine,
        tokenizer=engine.tokenizer,
        config=config,
        options=ServerOptions(**{"max_log_len": None, **options}),
        chat_template=None,
    )


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(byte_tokenizer())


@pytest.fixture
def make_app(engine: FakeEngine) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        caches = [{"block_size": "16"}] * len(engine.client.cores)
        metrics = PrometheusStats("fake", 4096, caches)
        return build_app(make_context(engine, **options), metrics, LoggingStats(10.0))

    return make


@pytest_asyncio.fixture
async def client(make_app: Callable[..., Any]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    flags = ("--served-model-name", NAME, "alias", "--enable-prompt-tokens-details")
    with serving(*flags, log=log) as server:
        yield server
