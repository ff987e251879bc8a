"""`vllm bench latency`: the time one batch takes, from prompt to last token."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vllm.benchmarks import report
from vllm.benchmarks.datasets import DatasetOptions
from vllm.benchmarks.offline import (
    add_engine_flags,
    check_profiling,
    exact_length,
    make_llm,
    prompts_of,
    samples_of,
)
from vllm.config.flags import add_settings, from_flags
from vllm.config.option import option, settings_of

if TYPE_CHECKING:
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    input_len: int = option(32, low=1, help="Tokens of a prompt.")
    output_len: int = option(128, low=1, help="Tokens to generate.")
    batch_size: int = option(8, low=1, help="Prompts at once.")
    n: int = option(1, low=1, help="Answers to each prompt.")
    num_iters: int = option(30, low=1, help="Batches to measure.")
    num_iters_warmup: int = option(10, low=0, help="Batches before those.")
    disable_detokenize: bool = option(False, help="Leave the time to make text out.")
    profile: bool = option(
        False, help="Record one batch instead of measuring; needs VLLM_TORCH_PROFILER_DIR."
    )
    output_json: str = option("", help="Write the figures to this file.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, "load", settings_of(LatencyOptions))
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    options = from_flags(LatencyOptions, args)
    if options.profile:
        check_profiling()
        profile(make_llm(args), options)
        return
    result = measure(make_llm(args), options)
    print(report.table("Latency benchmark", rows(result)))
    print(f"Avg latency: {result['avg_latency']} seconds")
    for percentile, latency_s in result["percentiles"].items():
        print(f"{percentile}% percentile latency: {latency_s} seconds")
    if options.output_json:
        report.save(options.output_json, result)


def profile(llm: LLM, options: LatencyOptions) -> None:
    """The batches before the measurement, and then one that is recorded."""
    params, load = _params(options), _load(options)
    for seed in range(options.num_iters_warmup + 1):
        if seed == options.num_iters_warmup:
            llm.start_profile()
        llm.generate(prompts_of(samples_of(llm, load, seed)), params, use_tqdm=False)
    llm.stop_profile()


def _params(options: LatencyOptions) -> SamplingParams:
    return exact_length(options.output_len, options.n, not options.disable_detokenize)


def _load(options: LatencyOptions) -> DatasetOptions:
    return DatasetOptions(
        num_prompts=options.batch_size,
        random_input_len=options.input_len,
        random_output_len=options.output_len,
        sharegpt_output_len=None,
    )


def measure(llm: LLM, options: LatencyOptions) -> dict[str, Any]:
    params, load = _params(options), _load(options)
    times_s = []
    num_batches = options.num_iters_warmup + options.num_iters
    for seed in tqdm(range(num_batches), unit="batch", disable=options.disable_tqdm):
        # New prompts each time: the prefix cache would skip the work.
        prompts = prompts_of(samples_of(llm, load, seed))
        start_s = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        times_s.append(time.perf_counter() - start_s)
    times_s = times_s[options.num_iters_warmup :]
    mean_s = sum(times_s) / len(times_s)
    return {
        "input_len": options.input_len,
        "output_len": options.output_len,
        "batch_size": options.batch_size,
        "avg_latency": mean_s,
        "latencies": times_s,
        "percentiles": report.percentiles(times_s, PERCENTILES),
        "output_tokens_per_s": options.batch_size * options.n * options.output_len / mean_s,
    }


def rows(result: dict[str, Any]) -> list[report.Row]:
    shape = f"{result['batch_size']} x ({result['input_len']} + {result['output_len']}) tokens"
    spread = "  ".join(f"p{p} {s * 1000:.2f}" for p, s in result["percentiles"].items())
    return [
        ("batch", shape),
        ("latency", f"mean {result['avg_latency'] * 1000:.2f}  {spread} ms"),
        ("output tokens per second", f"{result['output_tokens_per_s']:.1f}"),
    ]
