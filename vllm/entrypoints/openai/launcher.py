"""`vllm serve`: from flags to a listening server, and down again."""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any

import uvicorn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import ServerOptions, server_options
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats, NoLogging
from vllm.metrics.prometheus import PrometheusStats

logger = init_logger(__name__)
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
BOLD, DIM, GREEN, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[0m"


def run_server(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError for settings that cannot work."""
    options = server_options(args)
    load_chat_template(options.chat_template or None)
    # Before the model is loaded: an occupied port should not take minutes to tell.
    listener = bind(options.host, options.port)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _run(_serve(args, options, listener))
    except KeyboardInterrupt:
        logger.info("Stopped")
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another process listens on {host}:{port}. Stop it, choose another "
                "port, or give --port 0 for any free one."
            ) from None
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}.") from None
    return listener


async def _serve(args: argparse.Namespace, options: ServerOptions, listener: socket.socket) -> None:
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    observability = config.observability
    log_class = NoLogging if observability.disable_log_stats else LoggingStats
    log = log_class(observability.log_stats_interval_s)
    engine = AsyncLLM.from_vllm_config(config)
    try:
        await engine.check_health()  # from here on it notices when the core ends
        metrics = PrometheusStats.of(config, engine.client.ready.num_blocks)
        engine.add_stat_logger(metrics)
        engine.add_stat_logger(log)
        live = None if options.disable_ui else LiveStats(engine.client.ready.num_blocks)
        if live is not None:
            engine.add_stat_logger(live)
        context = ServingContext(
            engine=engine,
            tokenizer=await engine.get_tokenizer(),
            config=config,
            options=options,
            chat_template=load_chat_template(options.chat_template or None),
        )
        app = build_app(context, metrics, log, live)
        server = AnnouncingServer(options, app, context.model_name)
        await server.serve(sockets=[listener])
    finally:
        engine.shutdown()


class AnnouncingServer(uvicorn.Server):
    """Says where it listens, and how to try it, once it does."""

    def __init__(self, options: ServerOptions, app: Any, model_name: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level=options.uvicorn_log_level,
                access_log=not options.disable_uvicorn_access_log,
                timeout_graceful_shutdown=options.shutdown_timeout,
                # The application mounts at the root and only tells its clients where it is shown.
                root_path="",
            )
        )
        self.options = options
        self.model_name = model_name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets, "the launcher binds the socket"
        host = ANY_ADDRESS.get(self.options.host, self.options.host)
        url = f"http://{host}:{sockets[0].getsockname()[1]}"
        print(notice(url, self.model_name, bool(self.options.api_key), sys.stdout.isatty()))
        sys.stdout.flush()


def notice(url: str, model_name: str, needs_key: bool, is_terminal: bool) -> str:
    """The line that says the server is up, and a command to copy."""
    key = '-H "Authorization: Bearer $VLLM_API_KEY" ' if needs_key else ""
    body = f'{{"model": "{model_name}", "prompt": "Once upon a time", "max_tokens": 48}}'
    curl = f"curl {url}/v1/completions {key}-H 'Content-Type: application/json' -d '{body}'"
    ready = f"Ready: {url} serves {model_name}"
    if not is_terminal:
        return f"{ready}\nTry: {curl}"
    return f"\n  {BOLD}{GREEN}●{PLAIN} {BOLD}{ready}{PLAIN}\n\n  {DIM}Try:{PLAIN} {curl}\n"


def _run(main: Coroutine[Any, Any, None]) -> None:
    """In the faster event loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
