"""`vllm bench serve`: load on a running server, and what its clients see."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

import numpy as np
from tqdm import tqdm

from vllm.benchmarks import plot, report
from vllm.benchmarks.arrivals import ArrivalOptions
from vllm.benchmarks.backends import BACKENDS
from vllm.benchmarks.datasets import DatasetOptions, Sample, load_samples
from vllm.benchmarks.datasets.codec import Codec, ordinary_tokens, text_of_length
from vllm.benchmarks.figures import figures, parse_goals, parse_metrics, parse_percentiles
from vllm.benchmarks.load import Answer, Request, Sender
from vllm.benchmarks.serve_options import ResultOptions, SamplingOptions, TargetOptions
from vllm.benchmarks.target import Target
from vllm.config.flags import add_settings, from_flags
from vllm.config.option import settings_of
from vllm.entrypoints.openai.transport.listener import allow_many_connections
from vllm.errors import ConfigError
from vllm.utils.http_client import Server, ServerError

GROUPS: dict[str, type] = {
    "server": TargetOptions,
    "dataset": DatasetOptions,
    "arrivals": ArrivalOptions,
    "sampling": SamplingOptions,
    "result": ResultOptions,
}
SHOWN_ERRORS = 3


@dataclass(frozen=True, slots=True)
class ServeOptions:
    target: TargetOptions
    dataset: DatasetOptions
    arrivals: ArrivalOptions
    sampling: SamplingOptions
    result: ResultOptions

    @classmethod
    def of(cls, args: argparse.Namespace) -> ServeOptions:
        """Raises ConfigError, also for what would only fail after the measurement."""
        options = cls(
            target=from_flags(TargetOptions, args),
            dataset=from_flags(DatasetOptions, args),
            arrivals=from_flags(ArrivalOptions, args),
            sampling=from_flags(SamplingOptions, args),
            result=from_flags(ResultOptions, args),
        )
        options.target.path()
        options.arrivals.check()
        options.result.check()
        return options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for title, group in GROUPS.items():
        add_settings(parser, title, settings_of(group))


def run(args: argparse.Namespace) -> int:
    """Measure, print and save. 1 if a request failed."""
    options = ServeOptions.of(args)
    measured = bench(options)
    result = measured.result
    print(report.serving_summary(result))
    for error, count in measured.errors()[:SHOWN_ERRORS]:
        print(f"{count} failed: {error}")
    if path := options.result.path(result):
        details = measured.details() if options.result.save_detailed else {}
        options.result.save(path, result | details)
        print(f"Figures: {path}")
    if options.result.plot:
        plot.save(options.result.plot, measured.title(), measured.completed())
        print(f"Plot: {options.result.plot}")
    return 1 if result["failed"] else 0


@dataclass(frozen=True, slots=True)
class Measured:
    result: dict[str, Any]
    answers: list[Answer]

    def completed(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.error]

    def errors(self) -> list[tuple[str, int]]:
        """The different ones, the most frequent first."""
        counts: dict[str, int] = {}
        for answer in self.answers:
            if answer.error:
                counts[answer.error] = counts.get(answer.error, 0) + 1
        return sorted(counts.items(), key=lambda item: -item[1])

    def title(self) -> str:
        result = self.result
        return f"{result['model_id']}: {result['completed']} requests in {result['duration']:.1f} s"

    def details(self) -> dict[str, Any]:
        """One entry per request, in the order in which they were sent."""
        return {
            "input_lens": [answer.num_prompt_tokens for answer in self.answers],
            "output_lens": [answer.num_output_tokens for answer in self.answers],
            "start_times": [answer.start_s for answer in self.answers],
            "ttfts": [answer.first_token_s for answer in self.answers],
            "itls": [answer.between_s for answer in self.answers],
            "generated_texts": ["".join(answer.text) for answer in self.answers],
            "errors": [answer.error for answer in self.answers],
        }


def bench(options: ServeOptions) -> Measured:
    """Send the load; returns the figures. Raises ConfigError when the server cannot be used."""
    target = Target.of(options.target)
    codec = target.codec(options.target)
    vocabulary = ordinary_tokens(codec)
    samples = load_samples(options.dataset, codec, vocabulary, options.arrivals.seed)
    warmups = warmup_samples(samples, vocabulary, options.target.num_warmups)
    requests = make_requests(options, target, codec, [*warmups, *samples])
    sender = Sender(
        server=target.server,
        backend=BACKENDS[options.target.backend],
        path=options.target.path(),
        max_concurrency=options.arrivals.max_concurrency,
    )
    allow_many_connections()
    times_s = [0.0] * len(warmups) + options.arrivals.times_s(samples)
    quiet, profiles = options.result.disable_tqdm, options.target.profile
    answers, duration_s = asyncio.run(
        measure(sender, requests, times_s, len(warmups), quiet, profiles)
    )
    return Measured(
        _facts(options, target, samples) | _figures(options, answers, duration_s), answers
    )


async def measure(
    sender: Sender,
    requests: Sequence[Request],
    times_s: Sequence[float],
    num_warmups: int,
    quiet: bool,
    profiles: bool = False,
) -> tuple[list[Answer], float]:
    """The answers to all requests but the first `num_warmups`, and how long those took."""
    async for _ in sender.send(requests[:num_warmups], times_s[:num_warmups], lambda: None):
        pass
    rest = requests[num_warmups:]
    async with _profiled(sender.server) if profiles else nullcontext():
        with tqdm(total=len(rest), unit="req", disable=quiet) as bar:
            start_s = time.perf_counter()
            sent = sender.send(rest, times_s[num_warmups:], bar.update)
            answers = [answer async for answer in sent]
            return answers, time.perf_counter() - start_s


@asynccontextmanager
async def _profiled(server: Server) -> AsyncIterator[None]:
    """Raises ConfigError where the server records no profiles."""
    try:
        await server.order("/start_profile")
    except ServerError as error:
        raise ConfigError(f"--profile: {error}") from None
    try:
        yield
    finally:
        await server.order("/stop_profile")


def warmup_samples(
    samples: Sequence[Sample], vocabulary: Sequence[int], count: int
) -> list[Sample]:
    """As long as the samples are, of other tokens: theirs must not be in the prefix cache yet."""
    rng = np.random.default_rng()
    found = []
    for i in range(count):
        like = samples[i % len(samples)]
        ids = rng.choice(np.asarray(vocabulary), size=like.num_prompt_tokens)
        found.append(Sample(ids.tolist(), like.num_prompt_tokens, like.max_tokens))
    return found


def make_requests(
    options: ServeOptions, target: Target, codec: Codec, samples: Sequence[Sample]
) -> list[Request]:
    """Prompts go as text, so that servers tokenize; as tokens where no text has their length."""
    backend = BACKENDS[options.target.backend]
    common = {"model": target.model, **options.sampling.fields(options.target.backend)}
    prefix = options.target.request_id_prefix
    requests = []
    # Asking the server for tokens takes milliseconds per prompt.
    bar = tqdm(samples, desc="Preparing", unit="req", disable=options.result.disable_tqdm)
    for index, sample in enumerate(bar):
        prompt, length = sample.prompt, sample.num_prompt_tokens
        if isinstance(prompt, list):
            text, text_length = text_of_length(codec, prompt)
            if text_length == length or not backend.takes_tokens:
                prompt, length = text, text_length
        headers = {**target.headers, **({"X-Request-Id": f"{prefix}{index}"} if prefix else {})}
        body = {**backend.body(prompt, sample.max_tokens), **common}
        requests.append(Request(body, length, headers))
    return requests


def _facts(options: ServeOptions, target: Target, samples: Sequence[Sample]) -> dict[str, Any]:
    """What was asked for, under vLLM's names."""
    rate = options.arrivals.request_rate
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": options.target.backend,
        "label": options.result.label or None,
        "model_id": target.model,
        "tokenizer_id": options.target.tokenizer or target.model,
        "dataset_name": options.dataset.dataset_name,
        "num_prompts": len(samples),
        "request_rate": rate if isfinite(rate) else "inf",
        "burstiness": options.arrivals.burstiness,
        "max_concurrency": options.arrivals.max_concurrency or None,
        **options.result.facts(),
    }


def _figures(options: ServeOptions, answers: Sequence[Answer], duration_s: float) -> dict[str, Any]:
    wanted = options.result
    return figures(
        answers,
        duration_s,
        parse_metrics(wanted.percentile_metrics),
        parse_percentiles(wanted.metric_percentiles),
        parse_goals(wanted.goodput),
    )
