"""`vllm bench serve`: load on a running server, and what its clients see."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from vllm.benchmarks import report
from vllm.benchmarks.http_client import Server, ServerError
from vllm.errors import ConfigError

# Its tokens are what prompts are drawn from: whatever the tokenizer, they are ordinary ones.
SAMPLE_TEXT = (
    "The quick brown fox jumps over the lazy dog. Once upon a time a small girl lived near the "
    "river with her mother, two cats and 17 books about trains, ships, the moon and the sea."
)


@dataclass(slots=True)
class RequestTimes:
    """What one client saw; times in seconds."""

    start_s: float
    first_token_s: float = 0.0  # after start
    between_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""

    @property
    def per_output_token_s(self) -> float:
        return (self.total_s - self.first_token_s) / max(self.num_output_tokens - 1, 1)


@dataclass(frozen=True, slots=True)
class Load:
    """What to send."""

    model: str
    prompts: Sequence[Sequence[int]]
    output_len: int
    request_rate: float  # requests per second; inf: all at once
    burstiness: float  # shape of the gaps; 1: a Poisson process
    max_concurrency: int  # 0: no limit
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("server")
    where.add_argument("--base-url", default="", help="URL of the server; else --host and --port.")
    where.add_argument("--host", default="127.0.0.1", help="Host of the server.")
    where.add_argument("--port", type=int, default=8000, help="Port of the server.")
    where.add_argument("--api-key", default="", help="Key to send, if the server wants one.")
    where.add_argument("--model", default="", help="Model to ask for (default: the first served).")
    load = parser.add_argument_group("load")
    load.add_argument("--num-prompts", type=int, default=100, help="Requests to send.")
    load.add_argument(
        "--random-input-len", "--input-len", type=int, default=128, help="Tokens of a prompt."
    )
    load.add_argument(
        "--random-output-len", "--output-len", type=int, default=64, help="Tokens to generate."
    )
    load.add_argument(
        "--request-rate",
        type=float,
        default=float("inf"),
        help="Requests per second (default: inf, all at once).",
    )
    load.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        help="Shape of the gaps between requests: 1 Poisson, above more even, below burstier.",
    )
    load.add_argument(
        "--max-concurrency",
        type=int,
        default=0,
        help="Most requests open at a time (default: no limit).",
    )
    load.add_argument("--seed", type=int, default=0, help="Seed of prompts and gaps.")
    result = parser.add_argument_group("result")
    result.add_argument("--metric-percentiles", default="50,90,99", help="Percentiles to report.")
    result.add_argument(
        "--output-json", "--result-filename", default="", help="Write the figures to this file."
    )
    result.add_argument("--disable-tqdm", action="store_true", help="Show no progress bar.")


def run(args: argparse.Namespace) -> None:
    result = asyncio.run(bench(args))
    print(report.table("Serving benchmark", rows(result)))
    if args.output_json:
        report.save(args.output_json, result)
    if result["failed"]:
        raise ConfigError(f"{result['failed']} requests failed, the first: {result['first_error']}")


async def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Send the load; returns the figures. Raises ConfigError when the server cannot be reached."""
    _check(args)
    try:
        server = Server.at(args.base_url or f"http://{args.host}:{args.port}", args.api_key)
        model = args.model or (await server.get("/v1/models"))["data"][0]["id"]
        tokens = await server.post("/tokenize", {"model": model, "prompt": SAMPLE_TEXT})
    except (OSError, ValueError, ServerError) as error:
        raise ConfigError(f"the server cannot be used: {error}") from error
    load = Load(
        model=model,
        prompts=random_prompts(
            tokens["tokens"], args.num_prompts, args.random_input_len, args.seed
        ),
        output_len=args.random_output_len,
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        max_concurrency=args.max_concurrency,
        seed=args.seed,
    )
    with tqdm(total=args.num_prompts, unit="req", disable=args.disable_tqdm) as bar:
        start_s = time.perf_counter()
        times = [item async for item in send(server, load, bar)]
        elapsed_s = time.perf_counter() - start_s
    percentiles = [float(word) for word in args.metric_percentiles.split(",")]
    return figures(load, times, elapsed_s, percentiles)


def random_prompts(
    tokens: Sequence[int], num_prompts: int, length: int, seed: int
) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(tokens, size=length).tolist() for _ in range(num_prompts)]


def gaps_s(load: Load) -> Iterator[float]:
    """Seconds between starts; gamma distributed, so that burstiness 1 is a Poisson process."""
    rng = np.random.default_rng(load.seed)
    for _ in load.prompts:
        if load.request_rate == float("inf"):
            yield 0.0
        else:
            yield rng.gamma(load.burstiness, 1 / (load.request_rate * load.burstiness))


async def send(server: Server, load: Load, bar: Any) -> AsyncIterator[RequestTimes]:
    limit = asyncio.Semaphore(load.max_concurrency) if load.max_concurrency else nullcontext()
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    tasks = []

    async def one(prompt: Sequence[int]) -> RequestTimes:
        async with limit:
            times = await request(server, load, prompt)
        bar.update()
        return times

    for prompt, gap_s in zip(load.prompts, gaps_s(load), strict=True):
        due_s += gap_s
        # Against the schedule, not the last start: a late start must not delay the rest.
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        tasks.append(asyncio.create_task(one(prompt)))
    for task in asyncio.as_completed(tasks):
        yield await task


async def request(server: Server, load: Load, prompt: Sequence[int]) -> RequestTimes:
    body = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    times = RequestTimes(start_s=time.perf_counter())
    last_s = times.start_s
    try:
        async for event in server.stream("/v1/completions", body):
            now_s = time.perf_counter()
            if usage := event.get("usage"):
                times.num_prompt_tokens = usage["prompt_tokens"]
                times.num_output_tokens = usage["completion_tokens"]
            if not event["choices"]:
                continue
            if times.first_token_s:
                times.between_s.append(now_s - last_s)
            else:
                times.first_token_s = now_s - times.start_s
            last_s = now_s
    except (OSError, EOFError, ValueError, ServerError) as error:
        times.error = f"{type(error).__name__}: {error}"
    times.total_s = last_s - times.start_s
    return times


def figures(
    load: Load, times: Sequence[RequestTimes], elapsed_s: float, percentiles: Sequence[float]
) -> dict[str, Any]:
    done = [item for item in times if not item.error]
    failed = [item for item in times if item.error]
    num_prompt = sum(item.num_prompt_tokens for item in done)
    num_output = sum(item.num_output_tokens for item in done)
    return {
        "model": load.model,
        "completed": len(done),
        "failed": len(failed),
        "first_error": failed[0].error if failed else "",
        "duration_s": elapsed_s,
        "request_rate": "inf" if load.request_rate == float("inf") else load.request_rate,
        "max_concurrency": load.max_concurrency,
        "total_input_tokens": num_prompt,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / elapsed_s,
        "output_throughput": num_output / elapsed_s,
        "total_token_throughput": (num_prompt + num_output) / elapsed_s,
        "ttft": report.summary([item.first_token_s for item in done], percentiles),
        "tpot": report.summary(
            [item.per_output_token_s for item in done if item.num_output_tokens > 1], percentiles
        ),
        "itl": report.summary([gap for item in done for gap in item.between_s], percentiles),
        "e2el": report.summary([item.total_s for item in done], percentiles),
    }


def rows(result: dict[str, Any]) -> list[report.Row]:
    return [
        ("requests", f"{result['completed']} completed, {result['failed']} failed"),
        ("duration", f"{result['duration_s']:.2f} s"),
        ("requests per second", f"{result['request_throughput']:.2f}"),
        ("output tokens per second", f"{result['output_throughput']:.1f}"),
        ("all tokens per second", f"{result['total_token_throughput']:.1f}"),
        report.latency_row("time to first token", result["ttft"]),
        report.latency_row("time per output token", result["tpot"]),
        report.latency_row("between events", result["itl"]),
        report.latency_row("end to end", result["e2el"]),
    ]


def _check(args: argparse.Namespace) -> None:
    for flag, value, low in (
        ("--num-prompts", args.num_prompts, 1),
        ("--random-input-len", args.random_input_len, 1),
        ("--random-output-len", args.random_output_len, 1),
        ("--max-concurrency", args.max_concurrency, 0),
    ):
        if value < low:
            raise ConfigError(f"{flag} {value}: must be at least {low}.")
    for flag, value in (("--request-rate", args.request_rate), ("--burstiness", args.burstiness)):
        if not value > 0:
            raise ConfigError(f"{flag} {value}: must be above 0.")
