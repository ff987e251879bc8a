"""`vllm bench throughput`: tokens per second over many requests given at once."""

from __future__ import annotations

import argparse
import time
from typing import Any

from vllm.benchmarks import report
from vllm.benchmarks.offline import (
    add_engine_flags,
    check_at_least_one,
    exact_length,
    make_llm,
    random_prompts,
)
from vllm.entrypoints.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument("--input-len", type=int, default=128, help="Tokens of a prompt.")
    group.add_argument("--output-len", type=int, default=128, help="Tokens to generate.")
    group.add_argument("--num-prompts", type=int, default=200, help="Requests.")
    group.add_argument("--output-json", default="", help="Write the figures to this file.")
    group.add_argument("--disable-tqdm", action="store_true", help="Show no progress bar.")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    check_at_least_one(args, ("input_len", "output_len", "num_prompts"))
    result = measure(make_llm(args), args)
    print(report.table("Throughput benchmark", rows(result)))
    if args.output_json:
        report.save(args.output_json, result)


def measure(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    prompts = random_prompts(llm, args.num_prompts, args.input_len, seed=llm.model_config.seed)
    params = exact_length(args.output_len)
    start_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=not args.disable_tqdm)
    elapsed_s = time.perf_counter() - start_s
    num_output = sum(len(output.outputs[0].token_ids) for output in outputs)
    num_tokens = num_output + args.num_prompts * args.input_len
    return {
        "num_requests": args.num_prompts,
        "elapsed_time": elapsed_s,
        "total_num_tokens": num_tokens,
        "requests_per_second": args.num_prompts / elapsed_s,
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
