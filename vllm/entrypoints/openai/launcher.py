"""`vllm serve`: from flags to a listening server, and down again."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final

from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.openai.announcement import announce
from vllm.entrypoints.openai.cli_args import check_options, server_options
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.transport.listener import Listener, allow_many_connections
from vllm.entrypoints.openai.transport.logs import configure_logs
from vllm.entrypoints.openai.transport.server import HttpServer, run_in_loop
from vllm.entrypoints.openai.transport.tls import Tls, tls_of
from vllm.entrypoints.stop_signals import stop_signals
from vllm.logger import init_logger
from vllm.utils.lasting_imports import lasting_imports

logger = init_logger(__name__)

APPLICATION: Final = "vllm.entrypoints.openai.application"


def run_server(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError for settings that cannot work, and EngineDeadError.
    """
    options = server_options(args)
    # All of this before the model is loaded: an occupied port should not take minutes to tell.
    configure_logs(options)
    check_options(options)
    tls = tls_of(options)
    allow_many_connections()
    stop_signals.starting()
    try:
        _run(args, options, tls)
    except BaseException:
        # Whatever an interrupted start has become on its way up.
        if not stop_signals.is_start_interrupted:
            raise
        logger.info("Stopped")


def _run(args: argparse.Namespace, options: ServerOptions, tls: Tls | None) -> None:
    listener = Listener(options, tls is not None)
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        if options.api_server_count > 1:
            from vllm.entrypoints.openai.fleet import run_fleet

            run_fleet(config, options, listener)
        else:
            run_in_loop(_serve(config, options, listener, tls))
    finally:
        listener.close()


async def _serve(
    config: VllmConfig, options: ServerOptions, listener: Listener, tls: Tls | None
) -> None:
    # FastAPI is imported while the core loads the model.
    engine = AsyncLLM.from_vllm_config(config, meanwhile=_import_application)
    try:
        await engine.check_health()  # from here on it notices when the core ends
        from vllm.entrypoints.openai.application import make_app

        app, context = await make_app(engine, config, options)
        server = HttpServer(options, app, engine, context.admission, tls)
        server.on_started = lambda: announce(listener, options, context.model_name)
        await server.run_until_told(listener.socket)
    finally:
        engine.shutdown()


def _import_application() -> None:
    with lasting_imports():
        import_module(APPLICATION)
