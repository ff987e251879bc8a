"""`vllm serve`: from flags to a listening server, and down again."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any

from fastapi import FastAPI

from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.admission import Admission, Tally
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import ServerOptions, server_options
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.transport.listener import Listener, allow_many_connections
from vllm.entrypoints.openai.transport.logs import configure_logs
from vllm.entrypoints.openai.transport.server import HttpServer
from vllm.entrypoints.openai.transport.tls import Tls, tls_of
from vllm.entrypoints.openai.transport.users_middleware import imported
from vllm.logger import init_logger
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats, NoLogging
from vllm.metrics.prometheus import PrometheusStats

logger = init_logger(__name__)
BOLD, DIM, GREEN, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[0m"


def run_server(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError for settings that cannot work, and EngineDeadError.
    """
    options = server_options(args)
    # All of this before the model is loaded: an occupied port should not take minutes to tell.
    configure_logs(options)
    load_chat_template(options.chat_template or None)
    for path in options.middleware:
        imported(path)
    tls = tls_of(options)
    allow_many_connections()
    listener = Listener(options, tls is not None)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        run_in_loop(_serve(config, options, listener, tls))
    except KeyboardInterrupt:
        logger.info("Stopped")
    finally:
        listener.close()


async def _serve(
    config: VllmConfig, options: ServerOptions, listener: Listener, tls: Tls | None
) -> None:
    engine = AsyncLLM.from_vllm_config(config)
    try:
        await engine.check_health()  # from here on it notices when the core ends
        app, context = await make_app(engine, config, options)
        server = HttpServer(options, app, engine, context.admission, tls)
        server.on_started = lambda: announce(listener, options, context.model_name)
        await server.run_until_told(listener.socket)
    finally:
        engine.shutdown()


async def make_app(
    engine: AsyncLLM, config: VllmConfig, options: ServerOptions, tally: Tally | None = None
) -> tuple[FastAPI, ServingContext]:
    """The application of one API server, which listens to what the engine says of itself."""
    observability = config.observability
    metrics = PrometheusStats.of(config, engine.client.ready.num_blocks)
    log_class = NoLogging if observability.disable_log_stats else LoggingStats
    log = log_class(observability.log_stats_interval_s)
    admission = Admission(options.max_waiting_requests, config.scheduler.max_num_seqs, tally)
    for stat_logger in (metrics, log, admission):
        engine.add_stat_logger(stat_logger)
    live = None if options.disable_ui else LiveStats(engine.client.ready.num_blocks)
    if live is not None:
        engine.add_stat_logger(live)
    context = ServingContext(
        engine=engine,
        tokenizer=await engine.get_tokenizer(),
        config=config,
        options=options,
        chat_template=load_chat_template(options.chat_template or None),
        admission=admission,
    )
    return build_app(context, metrics, log, live), context


def announce(listener: Listener, options: ServerOptions, model_name: str) -> None:
    print(notice(listener.url, options, model_name, sys.stdout.isatty()))
    sys.stdout.flush()


def notice(url: str, options: ServerOptions, model_name: str, is_terminal: bool) -> str:
    """The line that says the server is up, and a command to copy."""
    flags = f"--unix-socket {options.uds} " if options.uds else ""
    if options.ssl_certfile:
        flags += "--insecure "
    if options.api_key:
        flags += '-H "Authorization: Bearer $VLLM_API_KEY" '
    body = f'{{"model": "{model_name}", "prompt": "Once upon a time", "max_tokens": 48}}'
    curl = f"curl {flags}{url}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
    where = f"{url} at {options.uds}" if options.uds else url
    ready = f"Ready: {where} serves {model_name}"
    if not is_terminal:
        return f"{ready}\nTry: {curl}"
    return f"\n  {BOLD}{GREEN}●{PLAIN} {BOLD}{ready}{PLAIN}\n\n  {DIM}Try:{PLAIN} {curl}\n"


def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    """In the faster event loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
