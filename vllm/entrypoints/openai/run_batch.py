"""From the flags of `vllm run-batch` to a file of answers."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import IO

from fastapi import FastAPI
from tqdm import tqdm

from vllm.config.flags import from_flags
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.application import make_app
from vllm.entrypoints.openai.batch.files import output, read_lines
from vllm.entrypoints.openai.batch.options import BatchOptions
from vllm.entrypoints.openai.batch.runner import BatchRunner
from vllm.entrypoints.openai.cli_args import ServerOptions, server_options
from vllm.errors import ConfigError


def run_batch(args: argparse.Namespace) -> None:
    """Raises ConfigError for files or settings that cannot work, EngineDeadError."""
    batch = from_flags(BatchOptions, args)
    for flag, value in (("-i", batch.input_file), ("-o", batch.output_file)):
        if not value:
            raise ConfigError(f"{flag} is missing: name a file, or an http(s) URL.")
    # No network and nobody else: what guards a server against its clients has nothing to guard.
    options = replace(
        server_options(args), api_key=(), disable_ui=True, max_request_body_bytes=sys.maxsize
    )
    load_chat_template(options.chat_template or None)
    lines = read_lines(batch.input_file)
    with output(batch.output_file, batch.output_tmp_dir) as file:
        num_failed = asyncio.run(_answer_all(args, options, batch, lines, file))
    print(f"{len(lines)} lines, {num_failed} of them failed: {batch.output_file}", file=sys.stderr)


async def _answer_all(
    args: argparse.Namespace,
    options: ServerOptions,
    batch: BatchOptions,
    lines: list[str],
    file: IO[str],
) -> int:
    """Returns how many lines failed."""
    async with application(args, options) as (app, engine):
        runner = BatchRunner(app, batch.max_concurrency)
        with tqdm(total=len(lines), unit="line", disable=batch.disable_tqdm) as bar:
            async for line in runner.answers(lines):
                file.write(line)
                bar.update()
                # Once it is gone nothing else can be answered: better no file than one of errors.
                await engine.check_health()
        return runner.num_failed


@asynccontextmanager
async def application(
    args: argparse.Namespace, options: ServerOptions
) -> AsyncIterator[tuple[FastAPI, AsyncLLM]]:
    """The server's application and its engine, without a socket."""
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    engine = AsyncLLM.from_vllm_config(config)
    try:
        await engine.check_health()  # from here on it notices when the core ends
        app, _ = await make_app(engine, config, options)
        async with app.router.lifespan_context(app):
            yield app, engine
    finally:
        engine.shutdown()


if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main(["run-batch", *sys.argv[1:]]))
