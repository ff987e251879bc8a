"""`vllm serve --headless`: a node that runs ranks for node 0, and no server."""

from __future__ import annotations

import argparse

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.copies_agent import run_copies
from vllm.entrypoints.stop_signals import stop_signals
from vllm.executor import run_node
from vllm.logger import init_logger

logger = init_logger(__name__)


def run_headless(args: argparse.Namespace) -> None:
    """Until node 0 stops the engine, SIGINT or SIGTERM. Raises ConfigError and EngineDeadError."""
    stop_signals.starting()
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        if config.parallel.nnodes > 1 or config.parallel.data_parallel_size == 1:
            run_node(config)
        else:
            run_copies(config)
    except BaseException:
        # Whatever an interrupted start has become on its way up.
        if not stop_signals.is_start_interrupted:
            raise
        logger.info("Stopped")
