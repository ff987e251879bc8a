"""From the flags of `vllm run-batch` to a file of answers."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI
from tqdm import tqdm

from vllm.config.flags import from_flags
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.application import make_app
from vllm.entrypoints.openai.batch.files import Answers, check_distinct, output, read_lines
from vllm.entrypoints.openai.batch.options import BatchOptions
from vllm.entrypoints.openai.batch.runner import BatchRunner
from vllm.entrypoints.openai.cli_args import server_options
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.errors import ConfigError


def run_batch(args: argparse.Namespace) -> None:
    """Raises ConfigError for files or settings that cannot work, EngineDeadError."""
    batch = from_flags(BatchOptions, args)
    for flag, value in (("-i", batch.input_file), ("-o", batch.output_file)):
        if not value:
            raise ConfigError(f"{flag} is missing: name a file, or an http(s) URL.")
    # No network and nobody else: what guards a server against its clients has nothing to guard.
    options = replace(
        server_options(args, has_clients=False),
        disable_ui=True,
        max_request_body_bytes=sys.maxsize,
    )
    load_chat_template(options.chat_template or None)
    check_distinct(batch.input_file, batch.output_file)
    lines = read_lines(batch.input_file)
    goes_by = [str(args.model).encode(errors="surrogateescape"), *lines]
    with output(batch.output_file, batch.output_tmp_dir, goes_by) as answers:
        num_failed = answers.num_failed
        if answers.num_lines < len(lines):  # else not even a model is needed
            num_failed += asyncio.run(_answer_all(args, options, batch, lines, answers))
    print(f"{len(lines)} lines, {num_failed} of them failed: {batch.output_file}", file=sys.stderr)


async def _answer_all(
    args: argparse.Namespace,
    options: ServerOptions,
    batch: BatchOptions,
    lines: list[bytes],
    answers: Answers,
) -> int:
    """Returns how many lines failed."""
    async with application(args, options) as (app, engine):
        runner = BatchRunner(app, batch.max_concurrency)
        first = answers.num_lines
        quiet = batch.disable_tqdm
        with tqdm(total=len(lines), initial=first, unit="line", disable=quiet) as bar:
            async with aclosing(runner.answers(lines, first)) as made:
                async for line in made:
                    # Once it is gone nothing else can be answered: better no answers than errors,
                    # which a later run would keep.
                    await engine.check_health()
                    answers.write(line)
                    bar.update()
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
