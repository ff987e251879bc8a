"""Routes of the HTTP server: each parses, calls its Serving object and returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from vllm import envs
from vllm.config.unavailable import FIXED_RANKS
from vllm.engine.front_end import CallFailed
from vllm.entrypoints.openai.admission import Stopping
from vllm.entrypoints.openai.documented import HEALTH, NEVER, Exposition
from vllm.entrypoints.openai.errors import (
    DOCUMENTED_ERRORS,
    EngineHung,
    error_response,
    install_error_handlers,
    json_response,
)
from vllm.entrypoints.openai.http_metrics import HttpMetrics
from vllm.entrypoints.openai.middleware import ApiKeyGuard, RequestIdHeader
from vllm.entrypoints.openai.routes import (
    development,
    generation,
    messages,
    responses,
    tokenizer,
    ui,
)
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.serving.chat import ServingChat
from vllm.entrypoints.openai.serving.completion import ServingCompletion
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.serving.messages import ServingMessages
from vllm.entrypoints.openai.serving.models import ServingModels
from vllm.entrypoints.openai.serving.responses import ServingResponses
from vllm.entrypoints.openai.serving.tokenize import ServingTokenize
from vllm.entrypoints.openai.state import ServerState, server_of
from vllm.entrypoints.openai.trace_context import TraceContext
from vllm.entrypoints.openai.transport.limits import RequestLimits
from vllm.entrypoints.openai.transport.users_middleware import add_users_middleware
from vllm.errors import EngineDeadError, NotAvailable
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats
from vllm.version import __version__

router = APIRouter()
SHAPES_LIMIT_S: Final = 1.0  # for an engine to say what it has launched


def build_app(
    context: ServingContext,
    metrics: PrometheusStats,
    log: LoggingStats,
    live: LiveStats | None = None,
) -> FastAPI:
    """`live`: what the page shows of the engine; without it there is no page."""
    options = context.options
    app = FastAPI(
        title="vLLM",
        version=__version__,
        root_path=options.root_path,
        openapi_url=None if options.disable_fastapi_docs else "/openapi.json",
        lifespan=_lifespan,
        responses=DOCUMENTED_ERRORS,
    )
    chat = ServingChat(context)
    app.state.server = ServerState(
        context=context,
        models=ServingModels(context),
        completion=ServingCompletion(context),
        chat=chat,
        responses=ServingResponses(context, chat),
        messages=ServingMessages(context, chat),
        tokenize=ServingTokenize(context),
        metrics=metrics,
        log=log,
        live=live,
    )
    app.include_router(router)
    app.include_router(generation.router)
    app.include_router(responses.router)
    app.include_router(messages.router)
    app.include_router(tokenizer.router)
    if options.enable_tokenizer_info_endpoint:
        app.include_router(tokenizer.info_router)
    if live is not None:
        app.include_router(ui.router)
    if envs.VLLM_SERVER_DEV_MODE:
        app.include_router(development.router)
    install_error_handlers(app)
    _add_middleware(app, options)
    add_users_middleware(app, options.middleware)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server: ServerState = app.state.server
    server.context.prepare_chat()
    async with server.log.running():
        yield
    await server.responses.close()
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
    app.add_middleware(RequestLimits, options=options)
    server: ServerState = app.state.server
    if server.context.config.observability.otlp_traces_endpoint:
        app.add_middleware(TraceContext)
    app.add_middleware(HttpMetrics, registry=server.metrics.registry)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return json_response(server_of(request).models.list())


@router.get("/v1/models/{model:path}")
async def get_model(model: str, request: Request) -> Response:
    return json_response(server_of(request).models.get(model))


@router.get("/health", response_class=Response, responses=HEALTH)
@router.get("/ping", response_class=Response, responses=HEALTH)
@router.post("/ping", response_class=Response, responses=HEALTH)
async def health(request: Request) -> Response:
    """200 while requests are served: 503 when the engine is gone or hangs, or the server ends."""
    context = server_of(request).context
    try:
        await context.engine.check_health()
    except EngineDeadError as error:
        return error_response(error)
    if context.admission.is_closed:
        return error_response(Stopping("the server is shutting down"))
    if await context.engine.is_hung():
        return error_response(EngineHung("the engine gives no sign of life; requests wait for it"))
    return Response(status_code=200)


@router.get("/version")
async def version() -> Response:
    return JSONResponse({"version": __version__})


@router.get("/load")
async def load(request: Request) -> Response:
    return JSONResponse(
        {"server_load": server_of(request).context.admission.tallies.requests.total()}
    )


@router.post("/scale_elastic_ep", status_code=400, responses=NEVER)
@router.post("/is_scaling_elastic_ep", status_code=400, responses=NEVER)
async def scale_elastic_ep() -> Response:
    raise NotAvailable(f"the number of ranks of a running engine cannot be changed. {FIXED_RANKS}.")


@router.post("/start_profile", response_class=Response)
async def start_profile(request: Request) -> Response:
    """Records what the engine does, until /stop_profile; needs VLLM_TORCH_PROFILER_DIR."""
    await server_of(request).context.engine.start_profile()
    return Response(status_code=200)


@router.post("/stop_profile", response_class=Response)
async def stop_profile(request: Request) -> Response:
    """Answers when the traces are written."""
    await server_of(request).context.engine.stop_profile()
    return Response(status_code=200)


@router.get("/metrics", response_class=Exposition)
async def metrics(request: Request) -> Response:
    server = server_of(request)
    # An engine that is gone or in a long step leaves the shapes as they were last time.
    with suppress(EngineDeadError, CallFailed, asyncio.TimeoutError):
        engine = server.context.engine
        shapes = await asyncio.wait_for(engine.launch_shapes(), SHAPES_LIMIT_S)
        server.metrics.shapes.show(shapes)
    server.metrics.silence.show(server.context.engine.silences_s())
    return Exposition(server.metrics.exposition())
