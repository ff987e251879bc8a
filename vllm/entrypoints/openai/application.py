"""The application of one API server, with its engine behind it."""

from __future__ import annotations

import itertools

from fastapi import FastAPI

from vllm.config.vllm import VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.admission import Admission, Tallies
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats, NoLogging
from vllm.metrics.prometheus import PrometheusStats


async def make_app(
    engine: AsyncLLM,
    config: VllmConfig,
    options: ServerOptions,
    tallies: Tallies | None = None,
    index: int = 0,
) -> tuple[FastAPI, ServingContext]:
    """It listens to what the engine says of itself; `index` is that of this API server."""
    observability = config.observability
    cores = engine.client.cores
    metrics = PrometheusStats.of(config, cores, counts_engine=index == 0)
    log_class = NoLogging if observability.disable_log_stats else LoggingStats
    first = config.parallel.data_parallel_start_rank
    log = log_class(observability.log_stats_interval_s, num_engines=len(cores), first_engine=first)
    max_running = config.scheduler.max_num_seqs * len(cores)
    admission = Admission(options.max_waiting_requests, max_running, tallies, len(cores))
    for stat_logger in (metrics, log, admission):
        engine.add_stat_logger(stat_logger)
    live = None if options.disable_ui else LiveStats([core.num_blocks for core in cores])
    if live is not None:
        engine.add_stat_logger(live)
    context = ServingContext(
        engine=engine,
        tokenizer=await engine.get_tokenizer(),
        config=config,
        options=options,
        chat_template=load_chat_template(options.chat_template or None),
        admission=admission,
        # Unique over all API servers: they share one engine.
        serial=itertools.count(index, options.api_server_count),
    )
    return build_app(context, metrics, log, live), context
