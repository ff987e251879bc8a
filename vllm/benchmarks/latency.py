"""`vllm bench latency`: the time one batch takes, from prompt to last token."""

from __future__ import annotations

import argparse
import time
from typing import Any

from tqdm import tqdm

from vllm.benchmarks import report
from vllm.benchmarks.offline import (
    add_engine_flags,
    check_at_least_one,
    exact_length,
    make_llm,
    random_prompts,
)
from vllm.entrypoints.llm import LLM

PERCENTILES = (10, 25, 50, 75, 90, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument("--input-len", type=int, default=32, help="Tokens of a prompt.")
    group.add_argument("--output-len", type=int, default=128, help="Tokens to generate.")
    group.add_argument("--batch-size", type=int, default=8, help="Prompts at once.")
    group.add_argument("--num-iters", type=int, default=30, help="Batches to measure.")
    group.add_argument("--num-iters-warmup", type=int, default=10, help="Batches before those.")
    group.add_argument("--output-json", default="", help="Write the figures to this file.")
    group.add_argument("--disable-tqdm", action="store_true", help="Show no progress bar.")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    check_at_least_one(args, ("input_len", "output_len", "batch_size", "num_iters"))
    result = measure(make_llm(args), args)
    print(report.table("Latency benchmark", rows(result)))
    if args.output_json:
        report.save(args.output_json, result)


def measure(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    params = exact_length(args.output_len)
    times_s = []
    num_batches = args.num_iters_warmup + args.num_iters
    for i in tqdm(range(num_batches), unit="batch", disable=args.disable_tqdm):
        # New prompts each time: the prefix cache would skip the work.
        prompts = random_prompts(llm, args.batch_size, args.input_len, seed=i)
        start_s = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        times_s.append(time.perf_counter() - start_s)
    times_s = times_s[args.num_iters_warmup :]
    mean_s = sum(times_s) / len(times_s)
    return {
        "input_len": args.input_len,
        "output_len": args.output_len,
        "batch_size": args.batch_size,
        "avg_latency": mean_s,
        "latencies": times_s,
        "latency": report.summary(times_s, PERCENTILES),
        "output_tokens_per_s": args.batch_size * args.output_len / mean_s,
    }


def rows(result: dict[str, Any]) -> list[report.Row]:
    shape = f"{result['batch_size']} x ({result['input_len']} + {result['output_len']}) tokens"
    return [
        ("batch", shape),
        report.latency_row("latency", result["latency"]),
        ("output tokens per second", f"{result['output_tokens_per_s']:.1f}"),
    ]
