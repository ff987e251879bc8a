"""`vllm bench throughput`: tokens per second over many requests given at once."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from vllm.errors import ConfigError

if TYPE_CHECKING:
    from vllm.entrypoints.llm import LLM

# A trace is about when requests come, and here they all come at once.
DATASETS = ("random", "sharegpt", "prefix_repetition", "custom")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    n: int = option(1, low=1, help="Answers to each prompt.")
    disable_detokenize: bool = option(False, help="Leave the time to make text out.")
    profile: bool = option(
        False, help="Record the measurement, which slows it down; needs VLLM_TORCH_PROFILER_DIR."
    )
    output_json: str = option("", help="Write the figures to this file.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, "dataset", settings_of(DatasetOptions))
    add_settings(parser, "load", settings_of(ThroughputOptions))
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    options, dataset = from_flags(ThroughputOptions, args), from_flags(DatasetOptions, args)
    if dataset.dataset_name not in DATASETS:
        raise ConfigError(
            f"--dataset-name {dataset.dataset_name}: its requests have a time; measure a server "
            f"with `vllm bench serve`. Here: {', '.join(DATASETS)}."
        )
    if options.profile:
        check_profiling()
    result = measure(make_llm(args), dataset, options)
    print(report.table("Throughput benchmark", rows(result)))
    print(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s"
    )
    if options.output_json:
        report.save(options.output_json, result)


def measure(llm: LLM, dataset: DatasetOptions, options: ThroughputOptions) -> dict[str, Any]:
    samples = samples_of(llm, dataset, seed=llm.model_config.seed)
    params = [
        exact_length(sample.max_tokens, options.n, not options.disable_detokenize)
        for sample in samples
    ]
    if options.profile:
        llm.start_profile()
    start_s = time.perf_counter()
    outputs = llm.generate(prompts_of(samples), params, use_tqdm=not options.disable_tqdm)
    elapsed_s = time.perf_counter() - start_s
    if options.profile:
        llm.stop_profile()
    num_output = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    num_tokens = num_output + sum(len(output.prompt_token_ids or ()) for output in outputs)
    return {
        "num_requests": len(samples),
        "elapsed_time": elapsed_s,
        "total_num_tokens": num_tokens,
        "total_output_tokens": num_output,
        "requests_per_second": len(samples) / elapsed_s,
        "tokens_per_second": num_tokens / elapsed_s,
        "output_tokens_per_second": num_output / elapsed_s,
    }


def rows(result: dict[str, Any]) -> list[report.Row]:
    return [
        ("requests", f"{result['num_requests']} in {result['elapsed_time']:.2f} s"),
        ("requests per second", f"{result['requests_per_second']:.2f}"),
        ("output tokens per second", f"{result['output_tokens_per_second']:.1f}"),
        ("all tokens per second", f"{result['tokens_per_second']:.1f}"),
    ]
