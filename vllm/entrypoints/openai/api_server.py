"""Routes of the HTTP server: each parses, calls its Serving object and returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from vllm import envs
from vllm.entrypoints.openai.cli_args import ServerOptions
from vllm.entrypoints.openai.errors import install_error_handlers, json_response
from vllm.entrypoints.openai.middleware import ApiKeyGuard, RequestIdHeader
from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.protocol.common import GenerationRequest
from vllm.entrypoints.openai.protocol.completion import CompletionRequest
from vllm.entrypoints.openai.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.openai.serving.chat import ServingChat
from vllm.entrypoints.openai.serving.completion import ServingCompletion
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.serving.models import ServingModels
from vllm.entrypoints.openai.serving.tokenize import ServingTokenize
from vllm.entrypoints.openai.streaming import EventStream, until_disconnect
from vllm.errors import EngineDeadError
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import CONTENT_TYPE, PrometheusStats
from vllm.version import __version__

router = APIRouter()
development = APIRouter()  # offered under VLLM_SERVER_DEV_MODE only


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the routes call; held by the application."""

    context: ServingContext
    models: ServingModels
    completion: ServingCompletion
    chat: ServingChat
    tokenize: ServingTokenize
    metrics: PrometheusStats
    log: LoggingStats


def build_app(context: ServingContext, metrics: PrometheusStats, log: LoggingStats) -> FastAPI:
    options = context.options
    app = FastAPI(
        title="vLLM",
        version=__version__,
        root_path=options.root_path,
        openapi_url=None if options.disable_fastapi_docs else "/openapi.json",
        lifespan=_lifespan,
    )
    app.state.server = ServerState(
        context=context,
        models=ServingModels(context),
        completion=ServingCompletion(context),
        chat=ServingChat(context),
        tokenize=ServingTokenize(context),
        metrics=metrics,
        log=log,
    )
    app.include_router(router)
    if envs.VLLM_SERVER_DEV_MODE:
        app.include_router(development)
    install_error_handlers(app)
    _add_middleware(app, options)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server = _server(app)
    async with server.log.running():
        yield
    server.context.close()


def _add_middleware(app: FastAPI, options: ServerOptions) -> None:
    """The last one added sees a request first."""
    if options.api_key:
        app.add_middleware(ApiKeyGuard, keys=options.api_key)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=options.allowed_origins,
        allow_credentials=options.allow_credentials,
        allow_methods=options.allowed_methods,
        allow_headers=options.allowed_headers,
    )
    if options.enable_request_id_headers:
        app.add_middleware(RequestIdHeader)


def _server(app: FastAPI) -> ServerState:
    state: ServerState = app.state.server
    return state


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await _generate(body, request, _server(request.app).completion)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    return await _generate(body, request, _server(request.app).chat)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return json_response(_server(request.app).models.list())


@router.get("/v1/models/{model:path}")
async def get_model(model: str, request: Request) -> Response:
    return json_response(_server(request.app).models.get(model))


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    return json_response(await _server(request.app).tokenize.tokenize(body))


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    return json_response(await _server(request.app).tokenize.detokenize(body))


@router.get("/health")
@router.get("/ping")
@router.post("/ping")
async def health(request: Request) -> Response:
    """200 while the engine lives, 503 afterwards."""
    try:
        await _server(request.app).context.engine.check_health()
    except EngineDeadError:
        return Response(status_code=503)
    return Response(status_code=200)


@router.get("/version")
async def version() -> Response:
    return JSONResponse({"version": __version__})


@router.get("/load")
async def load(request: Request) -> Response:
    return JSONResponse({"server_load": _server(request.app).context.num_in_flight})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(_server(request.app).metrics.exposition(), media_type=CONTENT_TYPE)


@development.post("/reset_prefix_cache")
async def reset_prefix_cache(request: Request) -> Response:
    await _server(request.app).context.engine.reset_prefix_cache()
    return Response(status_code=200)


@development.get("/server_info")
async def server_info(request: Request) -> Response:
    return JSONResponse({"vllm_config": repr(_server(request.app).context.config)})


async def _generate(
    body: GenerationRequest, request: Request, serving: ServingCompletion | ServingChat
) -> Response:
    header_id = request.headers.get("x-request-id")
    if body.stream:
        stream: Awaitable[AsyncGenerator[bytes, None]] = serving.stream(body, header_id)  # type: ignore[arg-type]
        return await EventStream.open(request, await stream)
    answer: Awaitable[msgspec.Struct] = serving.create(body, header_id)  # type: ignore[arg-type]
    return json_response(await until_disconnect(request.receive, answer))
